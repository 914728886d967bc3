"""Deployment kits: one archive with a bundle and everything a robot needs to install, verify and run it. No torch."""

from __future__ import annotations

import re
import tarfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from lram_export.atomic import atomic_file, scratch_directory
from lram_export.bundle import BUNDLE_SUFFIX, Bundle
from lram_export.errors import UsageError
from lram_export.progress import SILENT, Progress
from lram_export.runtimes import RUNTIMES
from lram_export.wheel import pack_wheel

KIT_SUFFIX = ".tar.gz"
TEMPLATES = ("README.txt", "control_loop.py", "install.sh", "lram-control.service.in", "robot.py")
EXECUTABLE = ("install.sh",)


@dataclass(frozen=True)
class Kit:
    """A written kit. Bytes: of the archive, of the bundle in it, and the memory a process will need (predicted)."""

    path: Path
    target: str
    size: int
    bundle_size: int
    memory: int


def write_kit(
    bundle: Bundle, path: Path, *, target: str | None = None, force: bool = False, progress: Progress = SILENT
) -> Kit:
    """Write an archive with the bundle, this package as a wheel, an install script and a service.

    Args:
        bundle: what to deploy; all its files are checked first.
        path: the archive, ``NAME.tar.gz``.
        target: what the robot runs; default: `tensorrt` if the bundle has it, else its first.
        force: replace an archive that exists.
        progress: told about every stage.

    Raises:
        UsageError: the bundle has no such target, or the target cannot be shipped this way.
        BundleError: the bundle is damaged.
    """
    if not path.name.endswith(KIT_SUFFIX):
        raise UsageError(f"--output: a kit's name ends with {KIT_SUFFIX}, got '{path.name}'")
    chosen = target or ("tensorrt" if "tensorrt" in bundle.targets else bundle.targets[0])
    bundle.artifact(chosen)
    if chosen in ("native", "pytorch"):
        why = "is compiled for one processor: build the wheel on the robot" if chosen == "native" else "needs torch"
        raise UsageError(
            f"--target: '{chosen}' {why}; a kit can have: {', '.join(_shippable(bundle)) or 'nothing of it'}"
        )
    kit_name(bundle)
    with atomic_file(path, force=force) as temporary, scratch_directory() as folder:
        with progress.stage("checking hashes"):
            bundle.check_files()
        with progress.stage("packing"):
            _pack(bundle, chosen, folder, temporary)
    size = sum(entry.size for entry in bundle.files())
    return Kit(path, chosen, path.stat().st_size, size, predicted_memory(bundle, chosen))


def predicted_memory(bundle: Bundle, target: str) -> int:
    """Bytes that a process which runs the target will need; a prediction, not measured there."""
    from lram_export.tensorrt.memory import Memory

    return Memory.of(bundle.artifact(target).weight_bytes, bundle.manifest.spec).running


def kit_name(bundle: Bundle) -> str:
    """The bundle's name, which becomes that of a folder and goes into scripts; raises UsageError if it should not."""
    name = bundle.path.resolve().name.removesuffix(BUNDLE_SUFFIX)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"{bundle.path}: a kit's name has letters, digits, '.', '_' and '-' only; rename the bundle")
    return name


def _shippable(bundle: Bundle) -> list[str]:
    return [t for t in bundle.targets if t not in ("native", "pytorch")]


def _pack(bundle: Bundle, target: str, folder: Path, archive: Path) -> None:
    name = kit_name(bundle)
    packed = f"{name}/{name}{BUNDLE_SUFFIX}"
    wheel = pack_wheel(folder)
    values = {
        "NAME": name,
        "TARGET": target,
        "WHEEL": wheel.name,
        "EXTRA": RUNTIMES[target].extra if target != "tensorrt" else "tensorrt",
        "SIZE": f"{sum(entry.size for entry in bundle.files()) / 1e6:.1f} MB",
        "MEMORY": f"{predicted_memory(bundle, target) / 1e6:.0f} MB",
    }
    with tarfile.open(archive, "w:gz", compresslevel=1) as kit:  # weights do not compress
        for file_name in TEMPLATES:
            template = files("lram_export").joinpath(f"data/kit/{file_name}")
            text = template.read_text(encoding="utf-8")
            for key, value in values.items():
                text = text.replace(f"@{key}@", value)
            written = folder / template.name
            written.write_text(text, encoding="utf-8")
            written.chmod(0o755 if template.name in EXECUTABLE else 0o644)
            kit.add(written, f"{name}/{template.name}", filter=_anonymous)
        kit.add(wheel, f"{name}/{wheel.name}", filter=_anonymous)
        kit.add(bundle.path / "manifest.json", f"{packed}/manifest.json", filter=_anonymous)
        for entry in bundle.files():
            kit.add(bundle.path / entry.path, f"{packed}/{entry.path}", filter=_anonymous)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nobody's file: the robot has other users."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
