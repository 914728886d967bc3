"""Outputs that appear whole or not at all, and what a killed process left of them.

Everything is written in a hidden folder beside its output, ``.NAME.xxxxxxxx.lram-tmp``, which its owner keeps locked
until it is done. The lock ends with the process, however that ends. So a folder that nobody holds is rubbish for
certain, and whoever writes in the same place next removes it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import mmap
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lram_export.errors import LramError, UsageError
from lram_export.system.renaming import exchange, rename_new

SUFFIX = ".lram-tmp"
_WORKPLACE = re.compile(r"\..*\.[a-z0-9_]{8}" + re.escape(SUFFIX))
_REPLACED = "replaced"
"""Folder of a workplace for what is about to be replaced, where two folders cannot change names at once."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_output(path: Path, *, force: bool, marker: str | None = None) -> None:
    """Refuse an output that exists (unless ``force``) or whose parent folder does not, or cannot be written to.

    Call it before long work, so that none is done in vain. ``force`` replaces files, and with ``marker`` only a
    folder that is empty or holds a file of that name: ``-o $HOME --force`` must not cost anyone a home.

    Raises:
        UsageError: naming the path and what to do.
    """
    if os.path.lexists(path):
        _check_replaceable(path, marker)
        if not force:
            raise UsageError(f"{path}: already exists; choose another --output or add --force to replace it")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"{path}: the folder {parent} does not exist; create it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"{path}: the folder {parent} cannot be written to; choose another --output")


def check_space(path: Path, size: int) -> None:
    """Raise LramError, before any of it is written, if an output of so many bytes does not fit where it should go."""
    free = shutil.disk_usage(path.absolute().parent).free
    if size > free:
        raise LramError(
            f"{path}: no space for it: {size} bytes are needed, and {free} are free in {path.absolute().parent}; "
            f"make room or choose another --output"
        )


@contextmanager
def atomic_directory(path: Path, *, marker: str, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder that takes the name ``path`` when the block succeeds.

    ``marker`` is the file by which a folder of this kind is known (see :func:`check_output`). When the block
    fails, nothing is left behind, and what was at ``path`` stays as it was.

    Raises:
        UsageError: there is something at ``path``, also if it came while the block ran. With ``force`` it is
            replaced, if by then it is still empty or of this kind.
        LramError: the disk is full.
    """
    check_output(path, force=force, marker=marker)
    with workplace(path.absolute()) as folder:
        made = folder / path.name
        made.mkdir(mode=0o755)
        yield made
        try:
            rename_new(made, path)
        except FileExistsError:
            _check_still_wanted(path, marker, force=force)
            _replace_folder(made, path, marker)


@contextmanager
def atomic_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield the path of an empty file that takes the name ``path`` when the block succeeds.

    Raises:
        UsageError: there is something at ``path``, also if it came while the block ran, and no ``force``.
        LramError: the disk is full.
    """
    check_output(path, force=force)
    with workplace(path.absolute()) as folder:
        made = folder / path.name
        made.touch()
        yield made
        made.chmod(0o644)
        try:
            rename_new(made, path)
        except FileExistsError:
            _check_still_wanted(path, None, force=force)
            made.replace(path)


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yield a folder for files that nobody needs after the block: `TemporaryDirectory`, cleared also after a kill."""
    with workplace(Path(tempfile.gettempdir()) / "scratch") as folder:
        yield folder


@contextmanager
def workplace(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside ``path``, ours alone, and remove it; first of all those whose owners died."""
    clear_stale(path.parent)
    done = False
    while not done:
        folder = _unused_name(path)
        lock: int | None = None
        try:  # from here on whatever comes, a signal between two lines too, leaves no folder
            folder.mkdir(mode=0o700)
            try:
                lock = _lock(folder)
            except (BlockingIOError, FileNotFoundError):
                continue  # somebody took it for rubbish before it was locked
            except OSError:
                pass  # a file system without locks: nobody will think it unlocked
            done = True
            with _full_disk_named(path, folder):
                yield folder
        finally:
            _remove(folder)
            if lock is not None:
                os.close(lock)


def clear_stale(parent: Path) -> None:
    """Remove what killed processes left in a folder; put back what one was about to replace and did not."""
    with suppress(OSError), os.scandir(parent) as entries:  # a folder that may not be read has nothing for us
        for entry in entries:
            if _WORKPLACE.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                _clear(Path(entry.path))


def _clear(folder: Path) -> None:
    try:
        lock = _lock(folder)
    except OSError:  # somebody is at work there, or it is not ours to remove
        return
    for lost in (folder / _REPLACED).glob("*"):
        with suppress(OSError):  # what was to replace it did so
            rename_new(lost, folder.parent / lost.name)
    _remove(folder)
    os.close(lock)


def _unused_name(path: Path) -> Path:
    while True:
        # a long name would be too long with what is added to it
        folder = path.parent / f".{path.name[:40]}.{secrets.token_hex(4)}{SUFFIX}"
        if not os.path.lexists(folder):
            return folder


def _lock(folder: Path) -> int:
    """Lock a folder; raises BlockingIOError if another has it, FileNotFoundError if it is gone."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.stat()
    except OSError:
        os.close(handle)
        raise
    return handle


def _remove(path: Path) -> None:
    """Remove a folder; what cannot be removed stays for whoever comes next."""
    shutil.rmtree(path, ignore_errors=True)


def _check_replaceable(path: Path, marker: str | None, name: Path | None = None) -> None:
    """Raise UsageError unless ``force`` may replace what is at ``path`` (and has another ``name`` for the user)."""
    name = name or path
    mode = path.stat().st_mode if path.exists() else path.lstat().st_mode
    if marker is None:
        if stat.S_ISDIR(mode):
            raise UsageError(f"{name}: is a folder; a file cannot replace it")
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise UsageError(f"{name}: is a device or a pipe; a file cannot replace it")
    elif not stat.S_ISDIR(mode):
        raise UsageError(f"{name}: is a file; a folder cannot replace it")
    elif any(path.iterdir()) and not (path / marker).is_file():
        raise UsageError(
            f"{name}: already exists, and --force replaces only what lram-export wrote: it has no {marker}; "
            f"choose another --output"
        )


def _check_still_wanted(path: Path, marker: str | None, *, force: bool) -> None:
    if not force:
        raise UsageError(
            f"{path}: was made by somebody else meanwhile and stays as it is; "
            f"choose another --output or add --force to replace it"
        )
    _check_replaceable(path, marker)


def _replace_folder(made: Path, path: Path, marker: str) -> None:
    """Put ``made`` where a folder of our kind is; that one is removed with the workplace."""
    if exchange(made, path):
        try:
            _check_moved(made, marker, path)
        except UsageError:
            exchange(made, path)
            raise
        return
    aside = made.parent / _REPLACED / path.name
    aside.parent.mkdir()
    path.rename(aside)
    try:
        _check_moved(aside, marker, path)
        rename_new(made, path)
    except BaseException:
        rename_new(aside, path)
        raise


def _check_moved(path: Path, marker: str, name: Path) -> None:
    """What was there in the very moment; of a link only itself is replaced."""
    if not path.is_symlink():
        _check_replaceable(path, marker, name)


@contextmanager
def _full_disk_named(path: Path, folder: Path) -> Iterator[None]:
    """A disk that is full, whoever met it and however it says so: the file, what was needed, what there is."""
    try:
        yield
    except Exception as error:
        if isinstance(error, LramError) or not _says_full(error):
            raise
        written = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        free = shutil.disk_usage(folder).free
        raise LramError(
            f"{path}: no space for it: more than the {written} bytes written so far are needed, and {free} are free "
            f"in {path.parent} (or a limit on files is reached); make room or choose another --output"
        ) from error


def _says_full(error: BaseException | None) -> bool:
    """Foreign code wraps what the system said, or keeps only its words."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in _FULL
        if full or any(os.strerror(code) in str(error) for code in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def file_sha256(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces; ``advance`` is told the bytes of each piece."""
    with path.open("rb", buffering=0) as file:
        return stream_sha256(file, advance)


@contextmanager
def open_regular(path: Path) -> Iterator[io.FileIO]:
    """Open a file for reading, also where ``path`` is a link to it.

    What is no file is not even opened: of a pipe that would wait for a writer, and a device may do something for it, as
    a watchdog, which begins to count.

    Raises:
        OSError: it is not there, may not be read, or is no file: :class:`NoFileError`.
    """
    _check_regular(path.stat())
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with io.FileIO(handle) as file:
        _check_regular(os.fstat(handle))  # another one may have come in between
        yield file


class NoFileError(OSError):
    """Something else than a file: its text says what."""


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _check_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise NoFileError(_KINDS.get(stat.S_IFMT(found.st_mode), "no file"))


def stream_sha256(file: io.RawIOBase, advance: Callable[[int], None] | None = None) -> str:
    """SHA-256 of what is left of an open file; see :func:`file_sha256`."""
    digest = hashlib.sha256()
    # one buffer for all pieces, at the start of a page: the system copies to there three times as fast
    with mmap.mmap(-1, 1 << 20) as page, memoryview(page) as buffer:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
            if advance is not None:
                advance(size)
    return digest.hexdigest()
