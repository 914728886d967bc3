"""The cache of `huggingface_hub`: a repository's ``snapshots/COMMIT`` holds links into its ``blobs``.

The folder of a commit is the client's: it lists every folder beside it as a commit, too. What is in ``blobs`` may be a
link itself, into a store that the repositories of the cache share.
"""

from __future__ import annotations

from pathlib import Path

_SNAPSHOTS, _BLOBS = "snapshots", "blobs"


def blobs_of(folder: Path) -> Path | None:
    """Where the content of a folder's files lies, if it is the folder of a commit in the cache, or lies in one, as the
    bundle in a package does; None for any other."""
    for commit in (folder, folder.parent):
        if commit.parent.name == _SNAPSHOTS and (commit.parent.parent / _BLOBS).is_dir():
            return commit.parent.parent / _BLOBS
    return None


def is_cached(path: Path, folder: Path) -> bool:
    """Whether a file of a folder is a link into the content of that folder's repository in the cache."""
    blobs = blobs_of(folder)
    return blobs is not None and path.is_symlink() and (path.parent / path.readlink()).parent.resolve() == blobs
