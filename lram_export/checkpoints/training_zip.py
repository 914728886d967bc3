"""The training code's `model.zip`, read without running anything in it.

Nothing is ever unpickled freely: weights are read with ``torch.load(weights_only=True)``. Of the zip's other entries
only ``pytorch_variables.pth`` is looked at, in the same way.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from lram_export.backbones.protocol import Weights
from lram_export.backbones.registry import backbone_module
from lram_export.checkpoints.checked import checked_weights
from lram_export.checkpoints.checkpoint import HINT_OPTIONS, Checkpoint, Hints
from lram_export.checkpoints.foreign import POLICY, refuse_foreign, refuse_nested, refuse_prefixed
from lram_export.checkpoints.from_weights import infer_config
from lram_export.checkpoints.training_config import read_hydra_config
from lram_export.errors import CheckpointError, UsageError, describe
from lram_export.system.files import file_sha256

KEY_PREFIXES = ("_orig_mod.", "module.")
SKIPPED_PREFIXES = ("predict_", "embed_action_disc.", "embed_timestep.")
"""Weights of the training code that acting does not need."""


def load_zip(path: Path, config_file: Path | None, hints: Hints) -> Checkpoint:
    """Load and check a `model.zip`; see :func:`~lram_export.checkpoints.loading.load_checkpoint`."""
    if config_file is not None and not config_file.is_file():
        raise UsageError(f"--config: {config_file}: no such file")
    refuse_foreign(path)
    raw = _read_tensors(path, POLICY)
    _refuse_normalization(path)
    weights, skipped = _strip(raw, path)
    refuse_prefixed(list(weights), f"{path}: {POLICY}")
    beside = path.parent / ".hydra" / "config.yaml"
    assumptions: tuple[str, ...] = ()
    if config_file is not None or beside.is_file():
        if hints != Hints():
            raise UsageError(
                f"{HINT_OPTIONS}: only for a zip without a config; {config_file or beside} already says it"
            )
        head = weights.get("action_net.0.weight")
        config = read_hydra_config(config_file or beside, 0 if head is None else head.shape[0])
    else:
        config, assumptions = infer_config(weights, path, hints, raw_num_actions(raw))
    canonical = backbone_module(config.backbone.kind, "original").canonical(weights, config.backbone)
    skipped += set(weights) - set(canonical)
    checked = checked_weights(canonical, config, path)
    return Checkpoint(path, config, checked, file_sha256(path), tuple(sorted(skipped)), assumptions)


def _refuse_normalization(path: Path) -> None:
    """The original agent normalizes observations when these are set, outside of the weights we export."""
    with zipfile.ZipFile(path) as archive:
        if "pytorch_variables.pth" not in archive.namelist():
            return
    variables = _load_entry(path, "pytorch_variables.pth")
    for name in ("state_mean", "state_std"):
        if isinstance(variables, dict) and variables.get(name) is not None:
            raise CheckpointError(
                f"{path}: pytorch_variables.pth: {name} is set, so the training run normalized its observations; "
                f"this is not supported. Fold mean and deviation into embed_state, and set {name} to None"
            )


def _read_tensors(path: Path, entry: str) -> Weights:
    import torch

    raw = _load_entry(path, entry)
    refuse_nested(raw, f"{path}: {entry}")
    if not isinstance(raw, dict) or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in raw.items()):
        raise CheckpointError(f"{path}: {entry}: expected a dictionary of named tensors")
    return raw


def _load_entry(path: Path, entry: str) -> object:
    """What an entry of the zip holds, read without running anything."""
    import pickle

    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            if entry not in archive.namelist():
                raise CheckpointError(f"{path}: the zip holds no {entry}; is this an LRAM model.zip?")
            content = io.BytesIO(archive.read(entry))
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: not a complete zip file ({error})") from None
    try:
        return torch.load(content, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: {entry} holds more than weights (a pickle that wants to run code?); refused, nothing ran"
        ) from None
    except Exception as error:  # torch raises many types for a damaged file
        raise CheckpointError(f"{path}: {entry} is damaged ({describe(error)})") from None


def _strip(raw: Weights, path: Path) -> tuple[Weights, list[str]]:
    """Remove key prefixes of compiled and distributed models, and weights that acting does not need."""
    weights: Weights = {}
    skipped: list[str] = []
    for key, tensor in raw.items():
        name = _without_prefixes(key)
        if name.startswith(SKIPPED_PREFIXES):
            skipped.append(name)
        elif name in weights:
            raise CheckpointError(f"{path}: {name}: appears twice, with different prefixes")
        else:
            weights[name] = tensor
    return weights, sorted(skipped)


def _without_prefixes(key: str) -> str:
    while key.startswith(KEY_PREFIXES):
        key = key.removeprefix("_orig_mod.").removeprefix("module.")
    return key


def raw_num_actions(raw: Weights) -> int | None:
    """Action tokens per dimension, read off the (otherwise skipped) action embedding: rows less one padding."""
    for key, tensor in raw.items():
        if _without_prefixes(key) == "embed_action_disc.weight":
            return int(tensor.shape[0]) - 1
    return None
