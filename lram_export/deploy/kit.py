"""Deployment kits: one archive with a bundle and everything a robot needs to install, verify and run it. No torch."""

from __future__ import annotations

import dataclasses
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from lram_export.bundle.bundle import BUNDLE_SUFFIX, Bundle
from lram_export.bundle.manifest import MANIFEST_FILE
from lram_export.deploy.wheel import WheelTags, check_wheel, has_engine, pack_wheel
from lram_export.errors import UsageError
from lram_export.prediction.predict import process_memory
from lram_export.progress import SILENT, Progress
from lram_export.runtimes import RUNTIMES
from lram_export.system.files import atomic_file, scratch_directory

KIT_SUFFIX = ".tar.gz"
TEMPLATES = ("README.txt", "control_loop.py", "install.sh", "lram-control.service.in", "robot.py")
EXECUTABLE = ("install.sh",)


@dataclass(frozen=True)
class Kit:
    """A written kit.

    Attributes:
        path: the archive.
        target: what its control loop runs.
        targets: all that are packed.
        wheel: file name of the wheel in it, which says for which machine it is.
        size, bundle_size: bytes of the archive, and of the bundle in it.
        memory: bytes a process that runs ``target`` will need (predicted); None where nothing is known of it.
    """

    path: Path
    target: str
    targets: tuple[str, ...]
    wheel: str
    size: int
    bundle_size: int
    memory: int | None


def write_kit(
    bundle: Bundle,
    path: str | Path,
    *,
    targets: Sequence[str] = (),
    wheel: str | Path | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Kit:
    """Write an archive with the bundle, this package as a wheel, an install script and a service.

    Args:
        bundle: what to deploy; all its files are checked first.
        path: the archive, ``NAME.tar.gz``.
        targets: what to pack; the first runs. Default: `tensorrt` if the bundle has it, else its first.
        wheel: of this package, built for the robot; default: packed from what is installed here, for `native` with the
            engine of this Python and kind of processor.
        force: replace an archive that exists.
        progress: told about every stage.

    Raises:
        UsageError: the bundle has no such target or is too old, the target cannot be shipped this way, or the wheel is
            none for it.
        BundleError: the bundle is damaged.
    """
    path, wheel = Path(path), None if wheel is None else Path(wheel)
    if not path.name.endswith(KIT_SUFFIX):
        raise UsageError(f"--output: a kit's name ends with {KIT_SUFFIX}, got '{path.name}'")
    if not bundle.manifest.complete:
        raise UsageError(
            f"{bundle.path}: was written before schema version 3, so its manifest lacks what a kit's has to say; "
            f"export it again"
        )
    chosen = tuple(dict.fromkeys(targets)) or ("tensorrt" if "tensorrt" in bundle.targets else bundle.targets[0],)
    for target in chosen:
        bundle.artifact(target)
    if "pytorch" in chosen:
        shippable = ", ".join(t for t in bundle.targets if t != "pytorch") or "nothing of it"
        raise UsageError(f"--target: 'pytorch' needs torch; a kit can have: {shippable}")
    engine = "native" in chosen
    if wheel is not None:
        check_wheel(wheel, engine=engine)
    elif engine and not has_engine():
        raise UsageError(
            "--target: the engine of 'native' is not installed here; give one built for the robot: --wheel"
        )
    kit_name(bundle)
    with atomic_file(path, force=force) as temporary, scratch_directory() as folder:
        with progress.stage("checking hashes"):
            bundle.check_files()
        with progress.stage("packing"):
            packed = only(bundle, chosen)
            shipped = wheel or pack_wheel(folder, engine=engine)
            _pack(packed, chosen[0], shipped, folder, temporary)
    size = sum(entry.size for entry in packed.files())
    memory = predicted_memory(bundle, chosen[0])
    return Kit(path, chosen[0], chosen, shipped.name, path.stat().st_size, size, memory)


def only(bundle: Bundle, targets: Sequence[str]) -> Bundle:
    """The same bundle with some of its targets, the first of them first, as its manifest will say it."""
    artifacts = tuple(bundle.artifact(target) for target in targets)
    return Bundle(bundle.path, dataclasses.replace(bundle.manifest, artifacts=artifacts))


def predicted_memory(bundle: Bundle, target: str) -> int | None:
    """Bytes that a process which runs the target will need; predicted, not measured there. None: nothing is known."""
    entry = bundle.artifact(target)
    return process_memory(target, entry.precision, entry.weight_bytes, bundle.manifest.spec.state_bytes)


def kit_name(bundle: Bundle) -> str:
    """The bundle's name, which becomes that of a folder and goes into scripts; raises UsageError if it should not."""
    name = bundle.path.resolve().name.removesuffix(BUNDLE_SUFFIX)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"{bundle.path}: a kit's name has letters, digits, '.', '_' and '-' only; rename the bundle")
    return name


def _pack(bundle: Bundle, target: str, wheel: Path, folder: Path, archive: Path) -> None:
    name = kit_name(bundle)
    packed = f"{name}/{name}{BUNDLE_SUFFIX}"
    tags, memory = WheelTags.of(wheel), predicted_memory(bundle, target)
    values = {
        "NAME": name,
        "TARGET": target,
        "WHEEL": wheel.name,
        "PYTHON": tags.version,
        "MACHINE": tags.machine,
        "EXTRA": RUNTIMES[target].extra if target != "tensorrt" else "tensorrt",
        "SIZE": f"{sum(entry.size for entry in bundle.files()) / 1e6:.1f} MB",
        "MEMORY": "not known" if memory is None else f"{memory / 1e6:.0f} MB",
    }
    with tarfile.open(archive, "w:gz", compresslevel=1) as kit:  # weights do not compress
        for file_name in TEMPLATES:
            template = files("lram_export").joinpath(f"deploy/templates/{file_name}")
            text = template.read_text(encoding="utf-8")
            for key, value in values.items():
                text = text.replace(f"@{key}@", value)
            written = folder / template.name
            written.write_text(text, encoding="utf-8")
            written.chmod(0o755 if template.name in EXECUTABLE else 0o644)
            kit.add(written, f"{name}/{template.name}", filter=_anonymous)
        kit.add(wheel, f"{name}/{wheel.name}", filter=_anonymous)
        manifest = folder / MANIFEST_FILE
        manifest.write_text(bundle.manifest.dumps(), encoding="utf-8")
        kit.add(manifest, f"{packed}/{MANIFEST_FILE}", filter=_anonymous)
        for entry in bundle.files():
            kit.add(bundle.path / entry.path, f"{packed}/{entry.path}", filter=_anonymous)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nobody's file: the robot has other users."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
