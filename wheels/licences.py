"""The licences of what a finished wheel or library has compiled into it beside our own code.

The texts are those of the packages that it was built with; none is kept here.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from wheels.matrix import WheelError

ZIG = {
    "libc++": "lib/libcxx/LICENSE.TXT",
    "libc++abi": "lib/libcxxabi/LICENSE.TXT",
    "libunwind": "lib/libunwind/LICENSE.TXT",
    "zig": "LICENSE",  # its compiler-rt
    "glibc": "lib/libc/glibc/LICENSES",  # what starts a library, and pthread_atfork
}
"""What zig links into everything, and where its package has the text."""
PYTHON = ("nanobind", "robin-map")
"""What a Python module has beyond that."""


def of_zig(folder: Path) -> dict[str, bytes]:
    """The texts of what zig links in; ``folder`` is that of its package. Raises WheelError."""
    return {name: _read(folder / place) for name, place in ZIG.items()}


def of_nanobind(packages: Path) -> dict[str, bytes]:
    """The texts of nanobind and of the hash map in it; ``packages`` is where it is installed. Raises WheelError."""
    found = sorted(packages.glob("nanobind-*.dist-info/licenses/LICENSE"))
    if len(found) != 1:
        raise WheelError(f"{packages}: expected one nanobind with its licence, found {len(found)}")
    header = _read(packages / "nanobind" / "ext" / "robin_map" / "include" / "tsl" / "robin_map.h").decode()
    comment, end, _ = header.partition("*/")
    if not end or "Permission is hereby granted" not in comment:
        raise WheelError(f"{packages}: expected a licence at the head of nanobind's robin_map.h, found none")
    lines = (line.strip().removeprefix("/**").removeprefix("*").strip() for line in comment.splitlines())
    return {"nanobind": _read(found[0]), "robin-map": "\n".join(lines).strip().encode() + b"\n"}


def add(wheel: Path, texts: Mapping[str, bytes], output: Path) -> None:
    """Write the wheel again with the texts as ``NAME.txt`` among its licences; METADATA and RECORD name them."""
    with zipfile.ZipFile(wheel) as before, zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as after:
        (metadata,) = (name for name in before.namelist() if name.endswith(".dist-info/METADATA"))
        folder = metadata.removesuffix("METADATA")
        head, gap, body = before.read(metadata).partition(b"\n\n")
        fields = "".join(f"\nLicense-File: {name}.txt" for name in texts).encode()
        new = {metadata: head.rstrip(b"\n") + fields + gap + body}
        new |= {f"{folder}licenses/{name}.txt": text for name, text in texts.items()}
        for entry in before.infolist():
            if entry.filename not in (*new, f"{folder}RECORD"):
                after.writestr(entry, before.read(entry))
        for name, text in new.items():
            after.writestr(name, text)
        record = before.read(f"{folder}RECORD").decode().splitlines()
        kept = [line for line in record if line.partition(",")[0] not in new]
        after.writestr(
            f"{folder}RECORD", "\n".join([*kept, *(_recorded(name, text) for name, text in new.items())]) + "\n"
        )


def _recorded(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WheelError(f"{path}: the licence of what is compiled in is not there: {error.strerror}") from None
