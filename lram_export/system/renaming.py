"""Renames that replace nothing, and exchanges: Linux's renameat2, with stand-ins where a file system lacks it."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD = -100
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_LACKING = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}
"""What a kernel, or a file system such as NFS, says that knows none of this."""


def rename_new(source: Path, target: Path) -> None:
    """Rename a file or a folder to a name that nobody has; FileExistsError if somebody does, whoever was first."""
    if not _renameat2(source, target, _RENAME_NOREPLACE):
        _rename_claimed(source, target)


def exchange(first: Path, second: Path) -> bool:
    """Let two files or folders change names, both at once; False if the file system cannot, and nothing is done."""
    return _renameat2(first, second, _RENAME_EXCHANGE)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _LACKING:
        return False
    raise OSError(code, os.strerror(code), str(target))


def _rename_claimed(source: Path, target: Path) -> None:
    """Claim the name by what only one can do, making a folder or a link, and then take it."""
    if source.is_dir() and not source.is_symlink():
        target.mkdir()
        try:
            source.rename(target)  # replaces a folder only as long as it is empty
        except BaseException:
            target.rmdir()
            raise
        return
    try:
        target.hardlink_to(source)
        source.unlink()
    except OSError as error:
        if error.errno not in (errno.EPERM, *_LACKING):
            raise
        target.touch(exist_ok=False)  # a file system without links, such as FAT
        source.replace(target)
