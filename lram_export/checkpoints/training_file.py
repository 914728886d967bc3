"""A file that training left, in any container: its weights, with the run's config or the sizes that they show."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lram_export.backbones.protocol import Weights
from lram_export.backbones.registry import backbone_module
from lram_export.checkpoints.checked import checked_weights
from lram_export.checkpoints.checkpoint import HINT_OPTIONS, Checkpoint, Hints
from lram_export.checkpoints.containers import Container, read_container
from lram_export.checkpoints.from_weights import infer_config
from lram_export.checkpoints.names import FoundPolicy, find_policy
from lram_export.checkpoints.torch_files import is_array
from lram_export.checkpoints.training_config import read_hydra_config
from lram_export.checkpoints.training_zip import normalization_of
from lram_export.errors import CheckpointError, UsageError

SKIPPED_PREFIXES = ("predict_", "embed_action_disc.", "embed_timestep.")
"""Weights of the training code that acting does not need."""
ACTION_EMBEDDING = "embed_action_disc.weight"
RUN_FOLDERS = ("checkpoints",)
"""Folders inside that of a run in which frameworks keep checkpoints."""


def load_training_file(path: Path, config_file: Path | None, hints: Hints, key: str | None) -> Checkpoint:
    """Load and check a file of weights; see :func:`~lram_export.checkpoints.loading.load_checkpoint`."""
    if config_file is not None and not config_file.is_file():
        raise UsageError(f"--config: {config_file}: no such file")
    container = read_container(path)
    normalization = normalization_of(path)
    found = find_policy(container.content, container.where, key)
    weights = {name: weight for name, weight in found.weights.items() if not name.startswith(SKIPPED_PREFIXES)}
    skipped = {*found.beside, *found.weights} - set(weights)
    odd = next((name for name, weight in found.weights.items() if not is_array(weight)), None)
    if odd is not None:
        raise CheckpointError(f"{container.where}: {odd}: expected a plain tensor with a dimension or more")
    config_file = config_file or config_of_run(path)
    assumptions: tuple[str, ...] = ()
    if config_file is not None:
        if hints != Hints():
            raise UsageError(f"{HINT_OPTIONS}: only for weights without a config; {config_file} already says it")
        head = weights.get("action_net.0.weight")
        config = read_hydra_config(config_file, 0 if head is None else head.shape[0])
    else:
        config, assumptions = infer_config(weights, container.where, hints, shown_actions(found.weights))
    canonical = backbone_module(config.backbone.kind, "original").canonical(weights, config.backbone)
    skipped |= set(weights) - set(canonical)
    if key is None and found.label:
        assumptions = (*assumptions, f"the policy is what lies under '{found.label}'")
    checked = checked_weights(canonical, config, path)
    sha256 = digest(container, found)
    return Checkpoint(path, config, checked, sha256, tuple(sorted(skipped)), assumptions, normalization)


def digest(container: Container, found: FoundPolicy) -> str:
    """SHA-256 that tells what was read: the file's, of one with several policies one over it and the label."""
    if len(found.among) == 1:
        return container.sha256
    return hashlib.sha256(f"{container.sha256} {found.label}\n".encode()).hexdigest()


def config_of_run(path: Path) -> Path | None:
    """The training config of the run whose folder a file lies in; None if there is none."""
    folders = [path.parent]
    if path.parent.name in RUN_FOLDERS:
        folders.append(path.parent.parent)
    return next((c for f in folders if (c := f / ".hydra" / "config.yaml").is_file()), None)


def shown_actions(weights: Weights) -> int | None:
    """Action tokens per dimension, read off the (otherwise skipped) action embedding: rows less one padding."""
    embedding = weights.get(ACTION_EMBEDDING)
    return None if embedding is None else int(embedding.shape[0]) - 1
