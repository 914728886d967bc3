"""Loads a checkpoint of either format."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from lram_export.checkpoints.checkpoint import HINT_OPTIONS, Checkpoint, Hints
from lram_export.checkpoints.folder import CONFIG_FILE, load_folder
from lram_export.checkpoints.training_zip import load_zip
from lram_export.errors import UsageError


@dataclass(frozen=True)
class CheckpointSource:
    """Where a checkpoint is and how to read it: the arguments of :func:`load_checkpoint`, and the way to act where the
    model has several (``ModelConfig.contexts``); None: its default."""

    path: Path
    config_file: Path | None = None
    hints: Hints | None = None
    context: str | None = None

    def load(self) -> Checkpoint:
        """Load and check it; raises UsageError for a context that the model does not have."""
        loaded = load_checkpoint(self.path, self.config_file, self.hints)
        try:
            return dataclasses.replace(loaded, config=loaded.config.in_context(self.context))
        except ValueError as error:
            raise UsageError(f"--context: {self.path}: {error}") from None


def load_checkpoint(path: Path, config_file: Path | None = None, hints: Hints | None = None) -> Checkpoint:
    """Load and check a checkpoint of either format.

    Args:
        path: a `model.zip` of the training code, or a folder in our own format.
        config_file: the training config of a zip; default: ``.hydra/config.yaml`` beside it, if it exists.
        hints: sizes that cannot be inferred from the weights of a zip without a config.

    Raises:
        UsageError: the path does not exist, or something must be given that cannot be inferred.
        CheckpointError: anything wrong with the content, naming file, key, expected and actual.
    """
    hints = hints or Hints()
    if not path.exists():
        raise UsageError(f"{path}: no such checkpoint; expected a model.zip or a folder with {CONFIG_FILE}")
    if path.is_dir():
        if config_file is not None:
            raise UsageError("--config: only for a model.zip; a checkpoint folder holds its own config.json")
        if hints != Hints():
            raise UsageError(f"{HINT_OPTIONS}: only for a zip without a config; {path} has its own")
        return load_folder(path)
    return load_zip(path, config_file, hints)
