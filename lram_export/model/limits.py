"""How large the inputs of a step may be, so that its arithmetic stays within float32."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import MAX_FLOAT32

LARGEST_TOKEN = 1e17
"""Bound of an embedded token before its layer norm, which squares it. Above 1.8e19 / sqrt(hidden size) the variance
is no float32 any more, and what comes out is finite, but wrong."""

SMALLEST_LIMIT = 1e3
"""With weights that allow no larger inputs than this a model is broken."""


def input_limits(weights: Mapping[str, Tensor], task: TaskSpec) -> dict[str, float]:
    """Input of a step -> the largest magnitude that keeps every embedded token below :data:`LARGEST_TOKEN`.

    Args:
        weights: those of a checkpoint, by its names.
        task: how much of the observation there is; an image has no limit, it is uint8.

    Raises:
        ValueError: weights that are not finite, or so large that no sensible input is left; names the tensor.
    """
    encoders = {"return_to_go": "embed_return", "reward": "embed_rewards"}
    if task.observation == "state":
        encoders["observation"] = "embed_state"
    return {name: _limit(weights, encoder, name, task) for name, encoder in encoders.items()}


def _limit(weights: Mapping[str, Tensor], encoder: str, name: str, task: TaskSpec) -> float:
    matrix = weights[f"{encoder}.weight"]
    if name == "observation":
        matrix = matrix[:, : task.observation_dim]
    gain = float(matrix.double().abs().sum(dim=1).max())
    offset = float(weights[f"{encoder}.bias"].double().abs().max())
    limit = min((LARGEST_TOKEN - offset) / max(gain, 1e-30), MAX_FLOAT32)
    if not limit >= SMALLEST_LIMIT:
        raise ValueError(
            f"{encoder}: weights up to {float(matrix.abs().max()):.3g}, bias up to {offset:.3g}: with a larger {name} "
            f"than {max(limit, 0.0):.3g} a step would leave float32; train the model again"
        )
    return _rounded_down(limit)


def _rounded_down(value: float) -> float:
    """To two digits, which are enough, and easy to read."""
    exponent = math.floor(math.log10(value)) - 1
    return float(f"{math.floor(value / 10.0**exponent)}e{exponent}")
