"""Our own checkpoint format: a folder with ``config.json`` (the model's sizes) and ``model.safetensors``.

Weights are float32, under the original code's names without prefixes, sLSTM kernels in the `vanilla` layout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lram_export.backbones.protocol import Weights
from lram_export.checkpoints.checked import checked_weights
from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.errors import CheckpointError
from lram_export.model.config import ModelConfig
from lram_export.spec.interface import Normalization
from lram_export.spec.json_fields import Fields, read_json
from lram_export.system.files import atomic_directory, check_space, file_sha256

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = "lram-export-checkpoint"
SCHEMA_VERSION = 3
"""Version 1 had all sizes side by side; version 3 may say how observations are normalized."""


def save_checkpoint(checkpoint: Checkpoint, directory: str | Path, *, force: bool = False) -> None:
    """Write our own format, whole or not at all.

    Raises:
        UsageError: ``directory`` exists and ``force`` is not set.
        LramError: the disk has no space for it.
    """
    directory = Path(directory)
    with atomic_directory(directory, marker=CONFIG_FILE, force=force) as temporary:
        check_space(directory, sum(weight.nbytes for weight in checkpoint.weights.values()))
        write_checkpoint(checkpoint, temporary)


def write_checkpoint(checkpoint: Checkpoint, directory: Path) -> None:
    """Write our own format's two files into an existing folder."""
    from safetensors.numpy import save_file  # that of torch refuses tied weights, which share memory

    save_file({k: w.contiguous().numpy() for k, w in checkpoint.weights.items()}, directory / WEIGHTS_FILE)
    (directory / WEIGHTS_FILE).chmod(0o644)  # safetensors writes it for the owner alone
    document: dict[str, Any] = {"format": FORMAT, "schema_version": 2, "model": checkpoint.config.to_json()}
    if checkpoint.normalization is not None:
        document |= {"schema_version": SCHEMA_VERSION, "normalization": checkpoint.normalization.to_json()}
    (directory / CONFIG_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def load_folder(path: Path, supplied: Weights | None = None) -> Checkpoint:
    """Load and check a folder in our own format; weights that it does not hold are ``supplied``."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config_path, weights_path = path / CONFIG_FILE, path / WEIGHTS_FILE
    for file in (config_path, weights_path):
        if not file.is_file():
            raise CheckpointError(
                f"{path}: {file.name} is missing; expected {CONFIG_FILE} and {WEIGHTS_FILE}{_meant(path)}"
            )
    try:
        document = read_json(config_path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config_path}: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f'{config_path}: format: expected "{FORMAT}"; is this an lram-export checkpoint?')
    version = document.get("schema_version")
    if version not in range(1, SCHEMA_VERSION + 1):
        raise CheckpointError(
            f"{config_path}: schema_version: expected 1 to {SCHEMA_VERSION}, got {version!r}; update lram-export to "
            f"read it"
        )
    try:
        config = ModelConfig.from_json(document.get("model"))
        said = document.get("normalization")
        normalization = None if said is None else Normalization.from_json(Fields.of(said, "normalization"))
    except ValueError as error:
        raise CheckpointError(f"{config_path}: {error}") from None
    try:
        weights = {**load_file(weights_path), **(supplied or {})}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{weights_path}: not a readable safetensors file ({error})") from None
    checked = checked_weights(weights, config, weights_path)
    return Checkpoint(path, config, checked, file_sha256(weights_path), normalization=normalization)


def is_own_folder(path: Path) -> bool:
    """Whether a folder's config is, or is meant to be, of our format: those of others lack the field."""
    try:
        document = read_json(path / CONFIG_FILE)
    except OSError:
        return False
    except ValueError:
        return True  # damaged: reading it says how
    return not isinstance(document, dict) or "format" in document


def _meant(path: Path) -> str:
    """What a folder that is no checkpoint was probably meant to be."""
    if (path / "model.zip").is_file():
        return f"; did you mean {path / 'model.zip'}?"
    if (path / "manifest.json").is_file():
        return "; this is a bundle, which was exported from a checkpoint"
    return ""
