"""Loads a checkpoint: a folder in our own format, or whatever training left."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from lram_export.checkpoints.checkpoint import HINT_OPTIONS, Checkpoint, Hints
from lram_export.checkpoints.containers import SAFETENSORS_FILE, weights_of_folder
from lram_export.checkpoints.folder import CONFIG_FILE, is_own_folder, load_folder
from lram_export.checkpoints.hub import fetched, hint
from lram_export.checkpoints.training_file import load_training_file
from lram_export.errors import UsageError
from lram_export.hub.address import is_address


@dataclass(frozen=True)
class CheckpointSource:
    """Where a checkpoint is and how to read it: the arguments of :func:`load_checkpoint`, and the way to act where the
    model has several (``ModelConfig.contexts``); None: its default."""

    path: str | Path
    config_file: str | Path | None = None
    hints: Hints | None = None
    context: str | None = None
    weights_key: str | None = None

    def load(self) -> Checkpoint:
        """Load and check it; raises UsageError for a context that the model does not have."""
        loaded = load_checkpoint(self.path, self.config_file, self.hints, self.weights_key)
        try:
            return dataclasses.replace(loaded, config=loaded.config.in_context(self.context))
        except ValueError as error:
            raise UsageError(f"--context: {self.path}: {error}") from None


POLICY_FILE = re.compile(r"(.+\.py):([A-Za-z_][A-Za-z0-9_]*)")
"""A Python file, and what in it makes a policy."""


def is_policy_file(path: Path) -> bool:
    """Whether what a user names is a Python file, with or without something in it: no checkpoint, but a policy."""
    return path.suffix == ".py" or ".py:" in path.name


def check_exists(path: Path) -> None:
    """Raise UsageError unless there is such a file or folder, or it is an address of the Hub."""
    if is_policy_file(path):
        raise UsageError(f"{path}: a Python file is a policy to export, verify or report, not a checkpoint")
    if not path.exists() and not is_address(path):
        raise UsageError(
            f"{path}: no such checkpoint; expected a file of weights, such as model.zip, or a folder with "
            f"{CONFIG_FILE}{hint(path)}"
        )


def load_checkpoint(
    path: str | Path,
    config_file: str | Path | None = None,
    hints: Hints | None = None,
    weights_key: str | None = None,
) -> Checkpoint:
    """Load and check a checkpoint.

    Args:
        path: a folder in our own format; or what training left: a `model.zip` of the original training code, a file of
            ``torch.save`` or of safetensors, the index of several such files, a folder that has one of these; or an
            address of the Hugging Face Hub, ``hf://OWNER/NAME``.
        config_file: the training config of weights; default: ``.hydra/config.yaml`` of their run, if it exists.
        hints: sizes that cannot be inferred from weights without a config.
        weights_key: which of several policies in a file is meant: the keys under which it lies.

    Raises:
        UsageError: the path does not exist, or something must be given that cannot be inferred.
        CheckpointError: anything wrong with the content, naming file, key, expected and actual.
    """
    path, config_file = Path(path), None if config_file is None else Path(config_file)
    check_exists(path)
    hints, path = hints or Hints(), fetched(path)
    if path.name == SAFETENSORS_FILE and is_own_folder(path.parent):
        path = path.parent
    if path.is_dir() and not is_own_folder(path):
        path = weights_of_folder(path) or path
    if not path.is_dir():
        return load_training_file(path, config_file, hints, weights_key)
    if is_own_folder(path) and config_file is not None:
        raise UsageError("--config: only for weights; a checkpoint folder holds its own config.json")
    if is_own_folder(path) and (hints != Hints() or weights_key is not None):
        raise UsageError(f"{HINT_OPTIONS}, --weights-key: only for weights without a config; {path} has its own")
    return load_folder(path)
