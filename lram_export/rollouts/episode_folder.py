"""Recorded episodes, a file each, beside the recording they become: whoever was interrupted goes on there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lram_export.episodes.steps import StepSequence
from lram_export.errors import LramError, UsageError
from lram_export.system.files import atomic_file, clear_stale

SUFFIX = ".episodes"
MARKER = "recording.json"
"""Says what the episodes come from."""
SeedTask = tuple[str, int]


class EpisodeFolder:
    """Episodes by environment and seed; see :func:`open_episodes`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept = sum(1 for _ in path.glob("*.npz"))

    def has(self, task: SeedTask) -> bool:
        """Whether an episode is there; they appear whole."""
        return self._file(task).is_file()

    def keep(self, task: SeedTask, episode: StepSequence) -> None:
        """Write an episode."""
        with atomic_file(self._file(task), force=True) as temporary, temporary.open("wb") as file:
            np.savez(file, **episode.inputs)  # type: ignore[arg-type]

    def episode(self, task: SeedTask) -> StepSequence:
        """Read an episode; raises LramError for a damaged file."""
        path = self._file(task)
        try:
            with np.load(path, allow_pickle=False) as file:
                return StepSequence({name: file[name] for name in file.files})
        except Exception as error:  # numpy and zipfile raise a dozen types for a damaged file
            raise LramError(f"{path}: not readable ({error}); remove it and run the command again") from None

    def _file(self, task: SeedTask) -> Path:
        name, seed = task
        return self.path / f"{name.replace('/', '_')}.{seed}.npz"


@contextmanager
def open_episodes(output: Path, made_with: Mapping[str, Any], *, force: bool = False) -> Iterator[EpisodeFolder]:
    """The folder beside a recording, ``OUTPUT.episodes``: made, or gone on with; removed when the block succeeds.

    Raises:
        UsageError: its episodes come from something else, and no ``force``.
    """
    path = output.with_name(output.name + SUFFIX)
    identity = json.dumps(made_with, indent=2, sort_keys=True)
    marker = path / MARKER
    if path.exists():
        found = marker.read_text(encoding="utf-8") if marker.is_file() else None
        if found != identity and force and found is not None:
            shutil.rmtree(path)
        elif found != identity:
            raise UsageError(
                f"{path}: holds episodes of another recording; choose another --output, add --force or remove it"
            )
    path.mkdir(exist_ok=True)
    clear_stale(path)
    if not marker.is_file():
        with atomic_file(marker) as temporary:
            temporary.write_text(identity, encoding="utf-8")
    try:
        yield EpisodeFolder(path)
    except BaseException:
        if not any(path.glob("*.npz")):
            shutil.rmtree(path)
        raise
    shutil.rmtree(path)
