"""`deploy`: a bundle becomes an archive that installs itself on a robot."""

from __future__ import annotations

from pathlib import Path

import click

from lram_export.cli import options
from lram_export.cli.console import ConsoleProgress, message, print_json
from lram_export.cli.parameters import PATH, TARGET, Command
from lram_export.deploy.robot import GLIBC, MACHINES
from lram_export.describe import counted, human_bytes
from lram_export.errors import UsageError


@click.command(cls=Command)
@options.bundle
@options.output
@click.option(
    "--target", "targets", multiple=True, type=TARGET,
    help="Target to pack; may be repeated, the first runs. Default: tensorrt, else the bundle's first.",
)  # fmt: skip
@click.option("--platform", type=click.Choice(MACHINES), help="The robot's processor; default: as here.")
@click.option("--python", metavar="X.Y", help="The robot's Python, e.g. 3.10; default: as here.")
@click.option("--dist", type=PATH, help="Folder that `make wheels` wrote; default: what is installed here.")
@click.option("--offline", is_flag=True, help="Pack all that is installed, so that the robot needs no network.")
@click.option(
    "--glibc", metavar="X.Y", help=f"With --offline: the robot's C library, or an older one; default: {GLIBC}."
)
@click.option(
    "--glibcxx",
    metavar="X.Y.Z",
    help="With --offline: its C++ library, by GLIBCXX_X.Y.Z; default: what comes with that C library.",
)
@click.option(
    "--language",
    type=click.Choice(["python", "c"]),
    default="python",
    show_default=True,
    help="What runs it: c is target native without Python; needs --dist.",
)
@options.force
@options.as_json
@options.quiet
def deploy(
    bundle: Path,
    output: Path,
    targets: tuple[str, ...],
    platform: str | None,
    python: str | None,
    dist: Path | None,
    offline: bool,
    glibc: str | None,
    glibcxx: str | None,
    language: str,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Pack a bundle with an install script, a control loop and a systemd service; nothing in it needs torch.

    On the robot: unpack, `sh NAME/install.sh`. It installs into a virtual environment, compiles for the robot's GPU
    where the target needs that, and verifies against the recorded reference.
    """
    from lram_export.bundle.bundle import Bundle
    from lram_export.deploy.archive import kit_name
    from lram_export.deploy.c_kit import write_c_kit
    from lram_export.deploy.kit import write_kit
    from lram_export.deploy.robot import Robot
    from lram_export.system.files import check_output

    if language == "c":
        of_python = {"--python": python, "--offline": offline, "--glibc": glibc, "--glibcxx": glibcxx}
        for option in (option for option, given in of_python.items() if given):
            raise UsageError(f"{option}: a kit in C has no Python; leave it out, or --language c")
    elif glibc is not None and not offline:
        raise UsageError("--glibc: only with --offline, whose wheels it chooses")
    elif glibcxx is not None and not offline:
        raise UsageError("--glibcxx: only with --offline; install.sh looks at what the robot has")
    check_output(output, force=force)
    progress = ConsoleProgress(quiet)
    opened = Bundle.open(bundle)
    if language == "c":
        if dist is None:
            raise UsageError("--language c: needs the folder with the library for the robot, from make wheels: --dist")
        made = write_c_kit(opened, output, dist, machine=platform, targets=targets, force=force, progress=progress)
        if as_json:
            print_json(made)
            return
        message(
            f"{made.path}: {human_bytes(made.size)}, target native in C, bundle {human_bytes(made.bundle_size)}, "
            f"library {made.library}; on the robot: tar xzf {made.path.name}, then see {kit_name(opened)}/README.txt",
            quiet,
        )
        return
    robot = Robot.of(platform, python, glibc, glibcxx)
    kit = write_kit(
        opened, output, targets=targets, robot=robot, dist=dist, offline=offline, force=force, progress=progress
    )
    if as_json:
        print_json(kit)
        return
    memory = "memory not known" if kit.memory is None else f"memory predicted {human_bytes(kit.memory)}"
    wheels = f"{counted(len(kit.wheels), 'wheel')} with {human_bytes(kit.wheels_size)}"
    message(
        f"{kit.path}: {human_bytes(kit.size)}, target {kit.target}, bundle {human_bytes(kit.bundle_size)}, {memory}, "
        f"wheel {kit.wheel}{f', for {robot} without a network: {wheels}' if offline else ''}; "
        f"on the robot: tar xzf {kit.path.name}, then sudo sh {kit_name(opened)}/install.sh",
        quiet,
    )
