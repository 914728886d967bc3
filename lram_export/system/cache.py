"""What a runtime compiled for this machine, kept so that the next load need not compile it again.

It lies outside of the bundle, whose files are all listed and hashed: in ``lram-export/<target>`` in the user's
cache folder (``$XDG_CACHE_HOME``, else ``~/.cache``), or in ``$LRAM_CACHE_DIR``; nothing is kept if that is set to
nothing. It is only ever a shortcut: where it cannot be read or written, the runtime compiles.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lram_export.errors import LramError
from lram_export.system.files import atomic_file

FOLDER_VARIABLE = "LRAM_CACHE_DIR"
KEPT = 8
"""Files kept per target; the ones longest unused go first."""

_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class CompileCache:
    """The files of one target; without a folder it keeps nothing."""

    folder: Path | None

    @staticmethod
    def of(target: str) -> CompileCache:
        """The cache of a target where the environment says."""
        chosen = os.environ.get(FOLDER_VARIABLE)
        if chosen == "":
            return CompileCache(None)
        if chosen is not None:
            return CompileCache(Path(chosen) / target)
        try:
            root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError:  # a service without a home
            return CompileCache(None)
        return CompileCache(root / "lram-export" / target)

    def read(self, identity: Mapping[str, object]) -> NDArray[np.uint8] | None:
        """The bytes written under an identity, mapped into memory, or None; damaged ones are as good as none.

        The file ends with their SHA-256: power can fail while a robot writes.
        """
        if self.folder is None:
            return None
        path = self._path(identity)
        try:
            with path.open("rb") as file:
                mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
            with suppress(OSError):  # one that came with the machine's image need not be writable
                path.touch()  # used: not the next to go
        except (OSError, ValueError):  # ValueError: an empty file
            return None
        content, digest = mapped[:-_DIGEST], mapped[-_DIGEST:]
        return content if hashlib.sha256(content.data).digest() == digest.tobytes() else None

    def write(self, identity: Mapping[str, object], content: memoryview) -> None:
        """Keep content, whole or not at all, and forget what was not used for longest."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(self._path(identity), force=True) as temporary, temporary.open("wb") as file:
                file.write(content)
                file.write(hashlib.sha256(content).digest())
            newest = sorted(self.folder.glob("*.bin"), key=lambda path: path.stat().st_mtime, reverse=True)
            for path in newest[KEPT:]:
                path.unlink(missing_ok=True)
        except (
            OSError,
            LramError,
        ):  # no space, no permission: the next load compiles again
            return

    def _path(self, identity: Mapping[str, object]) -> Path:
        assert self.folder is not None
        name = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()
        return self.folder / f"{name}.bin"
