"""Kits without Python, for target `native`: the library for C and C++, its header and examples, a bundle, and its
recorded steps for the program that proves it there.

For boards whose Python is too old, and for robots that have none. The library is that of the release, which `make
wheels` builds for every processor; this package does not contain it.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath

from lram_export.bundle.bundle import Bundle
from lram_export.deploy.archive import KIT_SUFFIX, KitArchive, check_kit, kit_name, open_archive
from lram_export.deploy.kit import only
from lram_export.deploy.recording import pack_recording
from lram_export.deploy.robot import Robot, manylinux_glibc
from lram_export.errors import UsageError
from lram_export.progress import SILENT, Progress
from lram_export.system.files import atomic_file

TARGET = "native"
README = "c/README.txt"
RECORDING = "reference.lrs"
CHECK = "share/lram/examples/check/check.cpp"
"""Of the library's archive: the program that reads the recording."""


@dataclass(frozen=True)
class CKit:
    """A written kit.

    Attributes:
        path: the archive.
        library: file name of the library's archive that was packed, which says for which machine it is.
        size, bundle_size: bytes of the archive, and of the bundle in it.
    """

    path: Path
    library: str
    size: int
    bundle_size: int


def write_c_kit(
    bundle: Bundle,
    path: str | Path,
    dist: str | Path,
    *,
    machine: str | None = None,
    targets: Sequence[str] = (),
    force: bool = False,
    progress: Progress = SILENT,
) -> CKit:
    """Write an archive with the bundle, the library for a processor, and sources of a control loop to build there.

    Args:
        bundle: what to deploy; all its files are checked first.
        path: the archive, ``NAME.tar.gz``.
        dist: folder with the library's archives, as `make wheels` writes it.
        machine: the processor, ``aarch64``; default: as here.
        targets: `native` or nothing, which is the same.
        force: replace an archive that exists.
        progress: told about every stage.

    Raises:
        UsageError: the bundle has no target `native` or is too old, another target is asked for, or there is no library
            for that processor.
        BundleError: the bundle is damaged.
    """
    path = Path(path)
    check_kit(bundle, path)
    for target in targets:
        if target != TARGET:
            raise UsageError(f"--target: a kit in C has target '{TARGET}' alone, got '{target}'")
    artifact = bundle.artifact(TARGET)
    library = find_library(Path(dist), machine or Robot.of().machine)
    with atomic_file(path, force=force) as temporary:
        with progress.stage("checking hashes"):
            bundle.check_files()
        with progress.stage("packing"), open_archive(temporary, kit_name(bundle)) as kit:
            packed = only(bundle, (TARGET,))
            values = {
                "NAME": kit.name,
                "MACHINE": machine or Robot.of().machine,
                "GLIBC": _needs(library),
                "MODEL": f"{kit.name}.lram/{artifact.files[0].path}",
            }
            kit.template(README, values)
            _add_library(kit, library)
            kit.content(RECORDING, pack_recording(bundle, TARGET))
            kit.bundle(packed)
    size = sum(entry.size for entry in packed.files())
    return CKit(path, library.name, path.stat().st_size, size)


def find_library(folder: Path, machine: str) -> Path:
    """The library's archive for a processor, of several the one for the oldest C library; raises UsageError if there is
    none of this version."""
    version = distribution("lram-export").version
    found = sorted(folder.glob(f"liblram-{version}-*_{machine}{KIT_SUFFIX}"))
    if not found:
        raise UsageError(f"--dist: {folder}: no liblram {version} for {machine} in it; make wheels builds it")
    return min(found, key=lambda path: int((_glibc(path) or "2.99").partition(".")[2]))


def _glibc(library: Path) -> str | None:
    """The C library that its name promises to be enough, ``liblram-VERSION-POLICY_MACHINE.tar.gz``."""
    return manylinux_glibc(library.name.split("-")[2])


def _needs(library: Path) -> str:
    """As the README says it."""
    found = _glibc(library)
    return f"glibc {found} or later" if found else "a glibc as new as where its library was built, or newer"


def _add_library(kit: KitArchive, library: Path) -> None:
    """Add everything in the library's archive; raises UsageError where it is none, or has no program that checks."""
    names = set()
    try:
        with tarfile.open(library) as archive:
            for entry in archive:
                name = PurePosixPath(entry.name)
                inside = PurePosixPath(*name.parts[1:])
                if entry.isdir():
                    continue
                linked = entry.issym() and "/" not in entry.linkname and entry.linkname != ".."
                if name.is_absolute() or ".." in name.parts or not inside.parts or not (entry.isfile() or linked):
                    raise UsageError(f"--dist: {library}: '{entry.name}' does not belong into a library")
                names.add(str(inside))
                kit.entry(str(inside), entry, archive.extractfile(entry) if entry.isfile() else None)
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise UsageError(f"--dist: {library}: not an archive of liblram ({error})") from None
    if CHECK not in names:
        raise UsageError(f"--dist: {library}: has no {CHECK}; make wheels builds it anew")
