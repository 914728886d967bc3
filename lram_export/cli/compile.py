"""`compile`: what can only be compiled where it runs."""

from __future__ import annotations

from pathlib import Path

import click

from lram_export.cli import options
from lram_export.cli.console import ConsoleProgress, message, print_json
from lram_export.cli.parameters import TARGET, Command
from lram_export.describe import counted, human_bytes
from lram_export.errors import UsageError


@click.command("compile", cls=Command)
@options.bundle
@click.option("--target", default="tensorrt", type=TARGET, show_default=True, help="Target to compile for.")
@options.rows
@click.option("--force", is_flag=True, help="Compile again what was compiled before.")
@options.as_json
@options.quiet
def compile_bundle(bundle: Path, target: str, batch: int | None, force: bool, as_json: bool, quiet: bool) -> None:
    """Build a bundle's engine for the GPU of this machine, verify it, and keep it next to the bundle.

    Afterwards `run`, `verify`, `bench` and load_policy(..., target="tensorrt") load it. An engine that is already
    there is verified again. With --batch one for another number of rows is kept beside it, which
    load_policy(..., batch=N) takes; without it the bundle's engine computes other numbers part after part. Only the
    target tensorrt is compiled this way.
    """
    from lram_export.bundle.bundle import Bundle
    from lram_export.runtimes import RUNTIMES
    from lram_export.targets.registry import load_target

    if target != "tensorrt":
        load_target(RUNTIMES, target)  # an unknown one is told as such
        raise UsageError(f"--target: '{target}' needs no compiling; its artifact runs as it is")
    opened = Bundle.open(bundle)
    opened.artifact(target)
    load_target(RUNTIMES, target)
    from lram_export.deploy.compile import compile_engine

    compiled = compile_engine(opened, batch=batch, force=force, progress=ConsoleProgress(quiet))
    if as_json:
        print_json({"engine": compiled.path, "seconds": compiled.seconds, "parity": compiled.parity.to_json()})
        return
    how = "already built" if compiled.seconds is None else f"built in {compiled.seconds:.0f} s"
    message(
        f"{compiled.path}: {human_bytes(compiled.path.stat().st_size)}, {how}, verified over "
        f"{counted(compiled.parity.steps, 'step')}: largest logit error {compiled.parity.max_logit_error:.2g}, "
        f"{compiled.parity.actions_different} of "
        f"{compiled.parity.actions} actions differ",
        quiet,
    )
