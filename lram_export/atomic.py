"""Outputs that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lram_export.errors import UsageError


def check_output(path: Path, *, force: bool, marker: str | None = None) -> None:
    """Refuse an output that exists (unless ``force``) or whose parent folder does not.

    Call it before long work, so that none is done in vain. With ``marker``, ``force`` only ever replaces a
    folder that is empty or holds a file of that name: ``-o $HOME --force`` must not cost anyone a home.

    Raises:
        UsageError: naming the path and what to do.
    """
    if path.is_dir() and force and marker and any(path.iterdir()) and not (path / marker).is_file():
        raise UsageError(f"{path}: --force replaces only what lram-export wrote, and this folder has no {marker}")
    if marker is None and path.is_dir():
        raise UsageError(f"{path}: is a folder; a file cannot replace it")
    if path.exists() and not force:
        raise UsageError(f"{path}: already exists; choose another --output or add --force to replace it")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: the folder {path.absolute().parent} does not exist; create it first")


@contextmanager
def atomic_directory(path: Path, *, marker: str, force: bool = False) -> Iterator[Path]:
    """Yield an empty temporary sibling of ``path`` that takes its name when the block succeeds.

    ``marker`` is the file by which a folder of this kind is known (see :func:`check_output`). When the block
    fails, nothing is left behind, and what was at ``path`` stays as it was.
    """
    check_output(path, force=force, marker=marker)
    path = path.absolute()
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path}: is a file; a folder cannot replace it")
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        if path.exists():
            aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            path.rename(aside / path.name)
            temporary.rename(path)
            shutil.rmtree(aside)
        else:
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def atomic_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling file of ``path`` that takes its name when the block succeeds."""
    check_output(path, force=force)
    path = path.absolute()
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp" + path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
