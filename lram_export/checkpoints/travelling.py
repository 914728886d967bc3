"""What a checkpoint is read from, for machines that it has to be sent to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from lram_export.checkpoints.containers import INDEX_SUFFIX, weights_of_folder
from lram_export.checkpoints.folder import is_own_folder
from lram_export.checkpoints.hub import fetched, wanted
from lram_export.checkpoints.loading import CheckpointSource, check_exists
from lram_export.checkpoints.training_file import config_of_run


def found_here(source: CheckpointSource) -> CheckpointSource:
    """The same checkpoint with everything that it takes from elsewhere named: its file or folder, and its config.

    Raises:
        UsageError, HubError: it is not there.
    """
    path = Path(source.path)
    check_exists(path)
    path = fetched(path)
    if is_own_folder(path.parent if path.is_file() else path):
        return dataclasses.replace(source, path=path.parent if path.is_file() else path)
    if path.is_dir():
        path = weights_of_folder(path) or path
    config = None if source.config_file is None else Path(source.config_file)
    return dataclasses.replace(source, path=path, config_file=config or config_of_run(path))


def files_of(source: CheckpointSource) -> dict[Path, tuple[str, ...]]:
    """The files and folders of a checkpoint that was :func:`found_here`: a folder with the names in it."""
    path, found = Path(source.path), dict[Path, tuple[str, ...]]()
    if path.is_dir():
        found[path] = tuple(sorted(f.relative_to(path).as_posix() for f in path.iterdir() if f.is_file()))
    elif path.name.endswith(INDEX_SUFFIX):
        names = {file.name for pattern in wanted(path.name) for file in path.parent.glob(pattern) if file.is_file()}
        found[path.parent] = tuple(sorted(names))
    else:
        found[path] = ()
    if source.config_file is not None:
        found[Path(source.config_file)] = ()
    return found


def moved(source: CheckpointSource, places: Mapping[Path, Path]) -> CheckpointSource:
    """The same checkpoint where its files lie in other places."""
    path, config = Path(source.path), source.config_file
    there = places[path] if path in places else places[path.parent] / path.name
    return dataclasses.replace(source, path=there, config_file=None if config is None else places[Path(config)])
