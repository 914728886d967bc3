"""The archive that a kit is: one folder with a bundle, scripts made of templates, and files that go along."""

from __future__ import annotations

import copy
import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import IO

from lram_export.bundle.bundle import BUNDLE_SUFFIX, Bundle
from lram_export.bundle.manifest import MANIFEST_FILE
from lram_export.errors import UsageError
from lram_export.system.files import file_sha256

KIT_SUFFIX = ".tar.gz"


@dataclass(frozen=True)
class PackedFile:
    """A file in a kit: its name, its bytes, and what they are known by."""

    name: str
    size: int
    sha256: str

    @staticmethod
    def of(path: Path) -> PackedFile:
        """Look at one."""
        return PackedFile(path.name, path.stat().st_size, file_sha256(path))


class KitArchive:
    """One that is being written; everything in it lies in the folder ``name``."""

    def __init__(self, archive: tarfile.TarFile, name: str) -> None:
        self._archive = archive
        self.name = name

    def text(self, name: str, content: str, *, executable: bool = False) -> None:
        """Add a file with that text."""
        self.content(name, content.encode(), executable=executable)

    def content(self, name: str, data: bytes, *, executable: bool = False) -> None:
        """Add a file with that content."""
        entry = tarfile.TarInfo(f"{self.name}/{name}")
        entry.size, entry.mode = len(data), 0o755 if executable else 0o644
        self._archive.addfile(entry, io.BytesIO(data))

    def file(self, name: str, path: Path) -> None:
        """Add a file as it is."""
        self._archive.add(path, f"{self.name}/{name}", filter=_anonymous)

    def entry(self, name: str, entry: tarfile.TarInfo, content: IO[bytes] | None) -> None:
        """Add what another archive has, a file or a link."""
        added = copy.copy(entry)
        added.name = f"{self.name}/{name}"
        self._archive.addfile(_anonymous(added), content)

    def template(self, name: str, values: Mapping[str, str], *, executable: bool = False) -> None:
        """Add a file of `deploy/templates` with ``@KEY@`` replaced by values."""
        text = files("lram_export").joinpath(f"deploy/templates/{name}").read_text(encoding="utf-8")
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        self.text(Path(name).name, text, executable=executable)

    def bundle(self, bundle: Bundle) -> None:
        """Add a bundle as its manifest lists it, under the name of the kit."""
        folder = f"{self.name}{BUNDLE_SUFFIX}"
        self.text(f"{folder}/{MANIFEST_FILE}", bundle.manifest.dumps())
        for entry in bundle.files():
            self.file(f"{folder}/{entry.path}", bundle.path / entry.path)


@contextmanager
def open_archive(path: Path, name: str) -> Iterator[KitArchive]:
    """Yield an archive to fill; of links it gets what they lead to, which the robot has not."""
    with tarfile.open(path, "w:gz", compresslevel=1, dereference=True) as archive:  # weights do not compress
        yield KitArchive(archive, name)


def kit_name(bundle: Bundle) -> str:
    """The bundle's name, which becomes that of a folder and goes into scripts; raises UsageError if it should not."""
    name = bundle.path.resolve().name.removesuffix(BUNDLE_SUFFIX)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"{bundle.path}: a kit's name has letters, digits, '.', '_' and '-' only; rename the bundle")
    return name


def check_kit(bundle: Bundle, path: Path) -> None:
    """Raises UsageError where no kit of that name can be, or none of that bundle."""
    if not path.name.endswith(KIT_SUFFIX):
        raise UsageError(f"--output: a kit's name ends with {KIT_SUFFIX}, got '{path.name}'")
    if not bundle.manifest.complete:
        raise UsageError(
            f"{bundle.path}: was written before schema version 3, so its manifest lacks what a kit's has to say; "
            f"export it again"
        )
    kit_name(bundle)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nobody's file: the robot has other users."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
