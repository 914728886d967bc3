"""How large the inputs of a step may be, so that its arithmetic stays within float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lram_export.model.encoders import Encoder
from lram_export.spec.bounds import rounded_down
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import MAX_FLOAT32

LARGEST_TOKEN = 1e17
"""Bound of an embedded token before its layer norm, which squares it. Above 1.8e19 / sqrt(hidden size) the variance
is no float32 any more, and what comes out is finite, but wrong."""

SMALLEST_LIMIT = 1e3
"""With weights that allow no larger inputs than this a model is broken."""


def input_limits(weights: Mapping[str, Tensor], encoders: Sequence[Encoder], task: TaskSpec) -> dict[str, float]:
    """Input of a step -> the largest magnitude that keeps every embedded token below :data:`LARGEST_TOKEN`.

    Args:
        weights: those of a checkpoint, by its names.
        encoders: those the task reads; an image has no limit, it is uint8.
        task: how much of the observation there is.

    Raises:
        ValueError: weights that are not finite, or so large that no sensible input is left; names the tensor.
    """
    found = {}
    for encoder in encoders:
        if encoder.tensor(task, 1).dtype == "float32":
            columns = encoder.used_columns(task).get(f"{encoder.name}.weight")
            found[encoder.input] = _limit(weights, encoder, columns)
    return found


def _limit(weights: Mapping[str, Tensor], encoder: Encoder, columns: int | None) -> float:
    name, matrix = encoder.name, weights[f"{encoder.name}.weight"][:, :columns]
    gain = float(matrix.double().abs().sum(dim=1).max())
    offset = float(weights[f"{name}.bias"].double().abs().max())
    limit = min((LARGEST_TOKEN - offset) / max(gain, 1e-30), MAX_FLOAT32)
    if not limit >= SMALLEST_LIMIT:
        raise ValueError(
            f"{name}: weights up to {float(matrix.abs().max()):.3g}, bias up to {offset:.3g}: with a larger "
            f"{encoder.input} than {max(limit, 0.0):.3g} a step would leave float32; train the model again"
        )
    return rounded_down(limit)
