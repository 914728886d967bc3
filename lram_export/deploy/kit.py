"""Deployment kits: one archive with a bundle and everything a robot needs to install, verify and run it. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lram_export.bundle.bundle import Bundle
from lram_export.deploy.archive import PackedFile, check_kit, kit_name, open_archive
from lram_export.deploy.offline import download
from lram_export.deploy.robot import Robot
from lram_export.deploy.wheel import Needs, WheelTags, engine_needs, find_wheel, has_engine, own_tags, pack_wheel
from lram_export.describe import human_bytes
from lram_export.errors import UsageError
from lram_export.prediction.predict import process_memory
from lram_export.progress import SILENT, Progress
from lram_export.runtimes import RUNTIMES
from lram_export.system.files import atomic_file, scratch_directory

TEMPLATES = ("README.txt", "control_loop.py", "install.sh", "lram-control.service.in", "robot.py")
EXECUTABLE = ("install.sh",)
RECORDER = "flight"
"""Extra that every kit installs: its loop can record."""
SUMS = "SHA256SUMS"
"""File beside the wheels in a kit, as ``sha256sum --check`` reads it."""


@dataclass(frozen=True)
class Kit:
    """A written kit.

    Attributes:
        path: the archive.
        target: what its control loop runs.
        targets: all that are packed.
        wheel: file name of this package's wheel in it, which says for which machine it is.
        offline: whether all that it needs is in it, too.
        wheels: all wheels in it.
        size, bundle_size, wheels_size: bytes of the archive, of the bundle in it, and of the wheels in it.
        memory: bytes a process that runs ``target`` will need (predicted); None where nothing is known of it.
    """

    path: Path
    target: str
    targets: tuple[str, ...]
    wheel: str
    offline: bool
    wheels: tuple[PackedFile, ...]
    size: int
    bundle_size: int
    wheels_size: int
    memory: int | None


def write_kit(
    bundle: Bundle,
    path: str | Path,
    *,
    targets: Sequence[str] = (),
    robot: Robot | None = None,
    dist: str | Path | None = None,
    offline: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> Kit:
    """Write an archive with the bundle, this package as a wheel, an install script and a service.

    Args:
        bundle: what to deploy; all its files are checked first.
        path: the archive, ``NAME.tar.gz``.
        targets: what to pack; the first runs. Default: `tensorrt` if the bundle has it, else its first.
        robot: what the kit is for; default: a machine like this one.
        dist: folder with wheels of this package, of which the one that serves the robot is packed; default: packed from
            what is installed here, for `native` with the engine of this Python and kind of processor.
        offline: pack the wheels of everything else that the robot installs, so that it needs no network.
        force: replace an archive that exists.
        progress: told about every stage.

    Raises:
        UsageError: the bundle has no such target or is too old, the target cannot be shipped this way, or there is no
            wheel for the robot.
        BundleError: the bundle is damaged.
        LramError: a wheel that the robot needs cannot be had.
    """
    path, robot = Path(path), robot or Robot.of()
    check_kit(bundle, path)
    chosen = tuple(dict.fromkeys(targets)) or ("tensorrt" if "tensorrt" in bundle.targets else bundle.targets[0],)
    for target in chosen:
        bundle.artifact(target)
    if "pytorch" in chosen:
        shippable = ", ".join(t for t in bundle.targets if t != "pytorch") or "nothing of it"
        raise UsageError(f"--target: 'pytorch' needs torch; a kit can have: {shippable}")
    engine = "native" in chosen
    extras = ("tensorrt" if chosen[0] == "tensorrt" else RUNTIMES[chosen[0]].extra, RECORDER)
    found = None if dist is None else find_wheel(Path(dist), robot, engine=engine)
    if found is None and engine:
        _check_own_engine(robot)
    with atomic_file(path, force=force) as temporary, scratch_directory() as folder:
        with progress.stage("checking hashes"):
            bundle.check_files()
        own = found or pack_wheel(folder, engine=engine)
        needs = engine_needs(own)
        if offline:
            _check_libraries(own, needs, robot)
        wheels = folder / "wheels"
        wheels.mkdir()
        if offline:
            with progress.stage(f"downloading wheels for {robot}"):
                download(wheels, own, extras, robot)
        with progress.stage("packing"):
            packed = only(bundle, chosen)
            shipped = [own, *(each for each in sorted(wheels.glob("*.whl")) if each.name != own.name)]
            contents = tuple(PackedFile.of(each) for each in shipped)
            memory = predicted_memory(bundle, chosen[0])
            with open_archive(temporary, kit_name(bundle)) as kit:
                values = _values(packed, chosen[0], extras, contents, robot if offline else None, needs, memory)
                for name in TEMPLATES:
                    kit.template(name, {"NAME": kit.name, **values}, executable=name in EXECUTABLE)
                for each in shipped:
                    kit.file(f"wheels/{each.name}", each)
                kit.text(f"wheels/{SUMS}", "".join(f"{each.sha256}  {each.name}\n" for each in contents))
                kit.bundle(packed)
    size = sum(entry.size for entry in packed.files())
    wheels_size = sum(each.size for each in contents)
    archive_size = path.stat().st_size
    return Kit(path, chosen[0], chosen, own.name, offline, contents, archive_size, size, wheels_size, memory)


def only(bundle: Bundle, targets: Sequence[str]) -> Bundle:
    """The same bundle with some of its targets, the first of them first, as its manifest will say it."""
    artifacts = tuple(bundle.artifact(target) for target in targets)
    return Bundle(bundle.path, dataclasses.replace(bundle.manifest, artifacts=artifacts))


def predicted_memory(bundle: Bundle, target: str) -> int | None:
    """Bytes that a process which runs the target will need; predicted, not measured there. None: nothing is known."""
    entry = bundle.artifact(target)
    return process_memory(target, entry.precision, entry.weight_bytes, bundle.manifest.spec.state_bytes)


def _check_own_engine(robot: Robot) -> None:
    """Raises UsageError where the engine that is installed here cannot be packed for that robot."""
    if not has_engine():
        raise UsageError(
            "--target: the engine of 'native' is not installed here; give the folder with wheels for the robot: --dist"
        )
    tags = own_tags()
    if not tags.serve(robot):
        python = tags.version + tags.abi.removeprefix(tags.python)
        raise UsageError(
            f"--target: the engine of 'native' that is installed here is for Python {python} on {tags.machine}, "
            f"the robot has Python {robot.python} on {robot.machine}; give the folder with wheels for it: --dist"
        )


def _check_libraries(wheel: Path, needs: Needs, robot: Robot) -> None:
    """Raises UsageError where what is compiled in a wheel asks for newer libraries than the robot has."""
    for option, library, needed, has in (
        ("--glibc", "glibc 2.", needs.glibc, robot.minor_glibc),
        ("--glibcxx", "libstdc++ with GLIBCXX_3.4.", needs.glibcxx, robot.minor_glibcxx),
    ):
        minor = needed.rpartition(".")[2]
        if needed and int(minor) > has:
            raise UsageError(
                f"{option}: the engine in {wheel.name} needs {library}{minor}, and the robot may have "
                f"{needed.removesuffix(minor)}{has}; say so if it has a newer one, or give the folder with wheels that "
                f"make wheels wrote: --dist"
            )


def _values(
    bundle: Bundle,
    target: str,
    extras: Sequence[str],
    wheels: Sequence[PackedFile],
    robot: Robot | None,
    needs: Needs,
    memory: int | None,
) -> dict[str, str]:
    """What the templates say; ``robot`` is the one that the wheels were downloaded for, if they were, and ``needs``
    are this package's wheel's."""
    tags = WheelTags.of(Path(wheels[0].name))
    listed = "\n".join(f"    {human_bytes(each.size):>9}  {each.name}" for each in wheels)
    return {
        "TARGET": target,
        "WHEEL": wheels[0].name,
        "PYTHON": robot.python if robot else tags.version,
        "MACHINE": robot.machine if robot else tags.machine,
        "GLIBC": robot.glibc if robot else needs.glibc,
        "GLIBCXX": needs.glibcxx,
        "OFFLINE": "yes" if robot else "",
        "EXTRAS": ",".join(extras),
        "WHEELS": listed,
        "WHEELS_SIZE": human_bytes(sum(each.size for each in wheels)),
        "NETWORK": "Nothing else is needed, and no network." if robot else "What they need comes from a package index.",
        "SIZE": f"{sum(entry.size for entry in bundle.files()) / 1e6:.1f} MB",
        "MEMORY": "not known" if memory is None else f"{memory / 1e6:.0f} MB",
    }
