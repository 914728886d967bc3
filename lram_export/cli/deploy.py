"""`deploy`: a bundle becomes an archive that installs itself on a robot."""

from __future__ import annotations

from pathlib import Path

import click

from lram_export.cli import options
from lram_export.cli.console import ConsoleProgress, message, print_json
from lram_export.cli.parameters import PATH, TARGET, Command
from lram_export.describe import human_bytes


@click.command(cls=Command)
@options.bundle
@options.output
@click.option(
    "--target", "targets", multiple=True, type=TARGET,
    help="Target to pack; may be repeated, the first runs. Default: tensorrt, else the bundle's first.",
)  # fmt: skip
@click.option("--wheel", type=PATH, help="Wheel of lram-export for the robot; default: what is installed here.")
@options.force
@options.as_json
@options.quiet
def deploy(
    bundle: Path,
    output: Path,
    targets: tuple[str, ...],
    wheel: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Pack a bundle with an install script, a control loop and a systemd service; nothing in it needs torch.

    On the robot: unpack, `sh install.sh`. It installs into a virtual environment, compiles for the robot's GPU where
    the target needs that, and verifies against the recorded reference.
    """
    from lram_export.bundle.bundle import Bundle
    from lram_export.deploy.kit import write_kit
    from lram_export.system.files import check_output

    check_output(output, force=force)
    progress = ConsoleProgress(quiet)
    kit = write_kit(Bundle.open(bundle), output, targets=targets, wheel=wheel, force=force, progress=progress)
    if as_json:
        print_json(kit)
        return
    memory = "memory not known" if kit.memory is None else f"memory predicted {human_bytes(kit.memory)}"
    message(
        f"{kit.path}: {human_bytes(kit.size)}, target {kit.target}, bundle {human_bytes(kit.bundle_size)}, {memory}, "
        f"wheel {kit.wheel}; on the robot: tar xzf {kit.path.name}, then sudo sh install.sh",
        quiet,
    )
