"""`deploy`: a bundle becomes an archive that installs itself on a robot."""

from __future__ import annotations

from pathlib import Path

import click

from lram_export.cli import options
from lram_export.cli.console import ConsoleProgress, human_bytes, message, print_json
from lram_export.cli.parameters import TARGET, Command


@click.command(cls=Command)
@options.bundle
@options.output
@click.option("--target", type=TARGET, help="Target the robot runs; default: tensorrt, else the bundle's first.")
@options.force
@options.as_json
@options.quiet
def deploy(bundle: Path, output: Path, target: str | None, force: bool, as_json: bool, quiet: bool) -> None:
    """Pack a bundle with an install script, a control loop and a systemd service; nothing in it needs torch.

    On the robot: unpack, `sh install.sh`. It installs into a virtual environment, compiles for the robot's GPU where
    the target needs that, and verifies against the recorded reference.
    """
    from lram_export.atomic import check_output
    from lram_export.bundle import Bundle
    from lram_export.deploy import write_kit

    check_output(output, force=force)
    kit = write_kit(Bundle.open(bundle), output, target=target, force=force, progress=ConsoleProgress(quiet))
    if as_json:
        print_json(kit)
        return
    message(
        f"{kit.path}: {human_bytes(kit.size)}, target {kit.target}, bundle {human_bytes(kit.bundle_size)}, "
        f"memory predicted {human_bytes(kit.memory)}; on the robot: tar xzf {kit.path.name}, then sudo sh install.sh",
        quiet,
    )
