"""Packs the library for C and C++ as it is installed, with what is built on it: an archive that may lie anywhere."""

from __future__ import annotations

import gzip
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path

from wheels.matrix import Library

ROOT = Path(__file__).parent.parent
SOURCES = ("examples/c", "examples/check", "examples/cpp")
"""What goes along beside it, so that a board needs no checkout."""


def pack(installed: Path, library: Library, licences: Mapping[str, bytes], folder: Path) -> Path:
    """Write ``liblram-VERSION-POLICY.tar.gz`` with what was installed, the examples and the licences; the same content
    gives the same file."""
    (config,) = installed.glob("lib/cmake/lram/lramConfigVersion.cmake")
    found = re.search(r'PACKAGE_VERSION "([^"]+)"', config.read_text(encoding="utf-8"))
    assert found is not None
    name = f"liblram-{found[1]}-{library.policy}"
    share = installed / "share" / "lram"
    texts = {"LICENSE": (ROOT / "LICENSE").read_bytes(), **{f"{each}.txt": licences[each] for each in licences}}
    for licence, text in texts.items():
        _write(share / "licenses" / licence, text)
    for source in (path for folder in SOURCES for path in (ROOT / folder).iterdir()):
        _write(share / source.relative_to(ROOT), source.read_bytes())
    path = folder / f"{name}.tar.gz"
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for each in sorted(installed.rglob("*")):
            archive.add(each, f"{name}/{each.relative_to(installed)}", recursive=False, filter=_anyone)
    return path


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _anyone(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry
