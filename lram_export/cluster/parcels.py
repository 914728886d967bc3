"""Files that travel: known by a digest of their content, unpacked once per machine, removed when nobody uses them.

A parcel is a file, or a folder with some of its files. On the other side it lies in a cache folder of the user's, under
its digest. Whoever uses it holds a shared lock on it, which ends with the process, however that ends; whoever comes or
goes removes what nobody holds. No Ray in here: who unpacks says how a piece is fetched.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from lram_export.errors import LramError
from lram_export.system.files import file_sha256

PIECE_BYTES = 64 << 20
"""What travels at once."""
FOLDER = "LRAM_CLUSTER_CACHE"
"""Environment variable: where parcels are unpacked."""
_ARRIVING = ".arriving"
_OURS = re.compile(rf"[0-9a-f]{{64}}({re.escape(_ARRIVING)})?")
"""What a parcel's folder is called: a folder that somebody names may have other things, too, which stay."""


@dataclass(frozen=True)
class ParcelFile:
    """A file of a parcel: its name below the parcel's folder, with slashes, its size and its SHA-256."""

    name: str
    size: int
    sha256: str

    @property
    def pieces(self) -> range:
        """Where each of its pieces starts; none of an empty file."""
        return range(0, self.size, PIECE_BYTES)


@dataclass(frozen=True)
class Parcel:
    """What travels: ``name`` of the file or folder, whether it is a folder, its files, and the digest of all that."""

    name: str
    folder: bool
    files: tuple[ParcelFile, ...]
    digest: str

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.size for file in self.files)

    def place(self, cache: Path) -> Path:
        """Where the file or folder lies in a cache."""
        return cache / self.digest / self.name


def pack(path: Path, names: Sequence[str]) -> Parcel:
    """Describe a file (no names), or the files of a folder by those names.

    Raises:
        LramError: one of them is no file, or lies outside of the folder.
    """
    files = []
    for name in dict.fromkeys(names) or (path.name,):
        file = path / name if names else path
        if names and not file.resolve().is_relative_to(path.resolve()):
            file = _inside(path, name)
        if not file.is_file():
            raise LramError(f"{file}: no such file, so it cannot be sent to the nodes")
        files.append(ParcelFile(PurePosixPath(name).as_posix(), file.stat().st_size, file_sha256(file)))
    listing = "".join(f"{file.sha256} {file.size} {file.name}\n" for file in files)
    return Parcel(path.name, bool(names), tuple(files), hashlib.sha256(f"{path.name}\n{listing}".encode()).hexdigest())


def _inside(path: Path, name: str) -> Path:
    """A name that stays in the folder, although what is there may be a link out of it, as in a cache of the Hub."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise LramError(f"{path / name}: lies outside of {path}, so it cannot be sent to the nodes")
    return path / name


def pieces(path: Path, parcel: Parcel) -> Iterator[NDArray[np.uint8]]:
    """The content of a parcel piece by piece, in the order of its files."""
    for file in parcel.files:
        source = path / file.name if parcel.folder else path
        for start in file.pieces:
            yield np.fromfile(source, np.uint8, min(PIECE_BYTES, file.size - start), offset=start)


def cache_folder() -> Path:
    """Where parcels are unpacked on this machine: a folder that only this user can read.

    Raises:
        LramError: it is somebody else's.
    """
    chosen = os.environ.get(FOLDER)
    folder = Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"lram-export-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=bool(chosen), exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise LramError(f"{folder}: belongs to somebody else, or others may write there; {FOLDER} names another folder")
    return folder


class Held:
    """A parcel that this process uses: its ``path`` stays as it is until :meth:`release`."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self._handle = path, handle

    def release(self) -> None:
        """Use it no more, and remove what nobody uses."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def unpack(parcel: Parcel, fetch: Callable[[int], NDArray[np.uint8]], cache: Path) -> Held:
    """The parcel in a cache, from its pieces unless it is there; ``fetch`` gives the piece of a number.

    Raises:
        LramError: what came is not what was sent.
    """
    with _locked(cache):
        _remove_unused(cache, keep=parcel.digest)
        home = cache / parcel.digest
        if not _intact(parcel, home):
            shutil.rmtree(home, ignore_errors=True)
            arriving = cache / f"{parcel.digest}{_ARRIVING}"
            arriving.mkdir()
            _write(parcel, fetch, arriving)
            if not _intact(parcel, arriving):
                shutil.rmtree(arriving)
                raise LramError(f"{parcel.name}: what arrived is not what was sent; run the command again")
            arriving.rename(home)
        handle = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(handle, fcntl.LOCK_SH)
    return Held(parcel.place(cache), handle)


def remove_unused(cache: Path) -> None:
    """Remove every parcel that no process uses."""
    with _locked(cache):
        _remove_unused(cache)


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Whatever changes the cache is done by one process at a time."""
    handle = os.open(cache, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_unused(cache: Path, keep: str = "") -> None:
    for found in cache.iterdir():
        if found.name == keep or not _OURS.fullmatch(found.name):
            continue
        handle = os.open(found, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(found, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(handle)


def _intact(parcel: Parcel, home: Path) -> bool:
    """Whether every file is there as it was sent."""
    root = home / parcel.name if parcel.folder else home
    for file in parcel.files:
        path = root / file.name
        if not path.is_file() or path.stat().st_size != file.size or file_sha256(path) != file.sha256:
            return False
    return True


def _write(parcel: Parcel, fetch: Callable[[int], NDArray[np.uint8]], home: Path) -> None:
    number, root = 0, home / parcel.name if parcel.folder else home
    for file in parcel.files:
        path = root / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as opened:
            for _ in file.pieces:
                opened.write(fetch(number).data)
                number += 1
