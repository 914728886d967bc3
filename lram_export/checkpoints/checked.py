"""Weights against what a config needs."""

from __future__ import annotations

from pathlib import Path

from lram_export.backbones.protocol import Weights
from lram_export.errors import CheckpointError, describe
from lram_export.model.config import ModelConfig


def checked_weights(weights: Weights, config: ModelConfig, file: Path) -> Weights:
    """Compare names and shapes with what the config needs; return float32 weights in the config's order."""
    import torch

    expected = config.shapes()
    missing = [k for k in expected if k not in weights]
    unknown = sorted(set(weights) - set(expected))
    if missing:
        raise CheckpointError(
            f"{file}: {missing[0]}: missing (expected shape {expected[missing[0]]})" + _and_more(missing)
        )
    if unknown:
        raise CheckpointError(
            f"{file}: {unknown[0]}: unknown weight of shape {tuple(weights[unknown[0]].shape)}; "
            f"the config has no place for it" + _and_more(unknown)
        )
    wrong = [k for k, shape in expected.items() if tuple(weights[k].shape) != shape]
    if wrong:
        raise CheckpointError(
            f"{file}: {wrong[0]}: the config expects shape {expected[wrong[0]]}, "
            f"the weights have {tuple(weights[wrong[0]].shape)}" + _and_more(wrong)
        )
    checked: Weights = {}
    for key in expected:
        tensor = weights[key]
        if not tensor.is_floating_point():
            raise CheckpointError(f"{file}: {key}: expected floating-point weights, got {tensor.dtype}")
        try:
            tensor = tensor.detach().resolve_neg().to(torch.float32)
        except RuntimeError as error:  # torch has types of which it converts none
            raise CheckpointError(f"{file}: {key}: {tensor.dtype} is not read ({describe(error)})") from None
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            count = int((~finite).sum())
            odd = f"{count} of {tensor.numel()} weights are NaN, infinite or beyond float32"
            raise CheckpointError(f"{file}: {key}: {odd}")
        checked[key] = tensor.contiguous()  # exporters read memory as it lies
    return checked


def _and_more(keys: list[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
