"""Recordings that others wrote (``.npz``): shapes and types are read first, values once those fit. Free of torch."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lram_export.spec.bounds import FREE_EXPANSION, MOST_EXPANSION, MOST_FILES, MOST_STATES

MOST_ARRAYS = MOST_FILES + MOST_STATES
_SUFFIX = ".npy"
_FOREIGN = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    SyntaxError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)
"""What zipfile, zlib and numpy raise for a damaged or encrypted file."""


@dataclass(frozen=True)
class ArrayHeader:
    """What the head of an array says."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        """Size of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.shape}"


@dataclass(frozen=True)
class Npz:
    """An opened file: the heads of its arrays; values are read on demand."""

    archive: zipfile.ZipFile
    headers: Mapping[str, ArrayHeader]

    def read(self, name: str) -> NDArray[Any]:
        """The values of an array; raises ValueError if they are damaged."""
        try:
            with self.archive.open(name + _SUFFIX) as file:
                array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
                if file.read(1):
                    raise ValueError("longer than its head says")
                return array
        except _FOREIGN as error:
            raise ValueError(f"{name}: not readable ({_reason(error)})") from None


@contextmanager
def open_npz(path: Path, expansion: int = MOST_EXPANSION) -> Iterator[Npz]:
    """Open a file and read the heads of its arrays, which may unpack to ``expansion`` times its size.

    Raises:
        ValueError: one line: not such a file; arrays that are not numbers; or more of them than the file can hold
            unless it was made to fill the memory.
    """
    try:
        archive = zipfile.ZipFile(path)
    except _FOREIGN as error:
        raise ValueError(f"not a readable .npz file ({_reason(error)})") from None
    with archive:
        try:
            headers = _headers(archive)
        except _FOREIGN as error:
            raise ValueError(f"not a readable .npz file ({_reason(error)})") from None
        size, unpacked = path.stat().st_size, sum(header.bytes for header in headers.values())
        if unpacked > FREE_EXPANSION + expansion * size:
            raise ValueError(f"{size} bytes that unpack to {unpacked}; refused")
        yield Npz(archive, headers)


def _headers(archive: zipfile.ZipFile) -> dict[str, ArrayHeader]:
    names = archive.namelist()
    if len(names) > MOST_ARRAYS or len(set(names)) != len(names):
        raise ValueError(f"expected at most {MOST_ARRAYS} different arrays, got {len(names)}")
    headers = {}
    for name in names:
        if not name.endswith(_SUFFIX):
            raise ValueError(f"{name!r} is no array")
        with archive.open(name) as file:
            headers[name.removesuffix(_SUFFIX)] = _header(file, name.removesuffix(_SUFFIX))
    return headers


def _header(file: IO[bytes], name: str) -> ArrayHeader:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"{name}: format {version}")
    if dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected numbers, got {dtype}")
    if any(extent < 0 for extent in shape):
        raise ValueError(f"{name}: shape {shape}")
    return ArrayHeader(shape, dtype)


def _reason(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
