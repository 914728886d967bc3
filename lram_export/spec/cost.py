"""What quantization cost, in numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.spec.parity import relative_error

Array = NDArray[np.generic]


@dataclass(frozen=True)
class QuantizationCost:
    """How far two models' outputs are apart over some steps.

    ``relative_error`` is the 2-norm of the error of all action logits divided by that of the logits;
    ``mean_logit_error`` and ``max_logit_error`` are absolute. ``actions_different`` counts action values that
    differ, ``beyond_one_bin`` those by more than one bin (discrete actions: all that differ).
    """

    steps: int
    relative_error: float
    mean_logit_error: float
    max_logit_error: float
    actions: int
    actions_different: int
    beyond_one_bin: int

    @property
    def disagreement(self) -> float:
        """Share of action values that differ by more than one bin."""
        return self.beyond_one_bin / max(self.actions, 1)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def quantization_cost(
    bin_width: float,
    expected: tuple[Array, Array],
    actual: tuple[Array, Array],
) -> QuantizationCost:
    """Compare (actions, action logits) of the float32 reference with those of another model, step by step.

    Args:
        bin_width: distance of two neighbouring action values; 0 for discrete actions, which are all apart.
        expected: of the reference, (steps, ...).
        actual: of the other model, likewise.
    """
    action, logits = expected
    error = np.abs(actual[1].astype(np.float64) - logits.astype(np.float64))
    distance = np.abs(actual[0].astype(np.float64) - action.astype(np.float64))
    return QuantizationCost(
        steps=len(action),
        relative_error=relative_error(logits, actual[1]),
        mean_logit_error=float(error.mean()),
        max_logit_error=float(error.max()),
        actions=action.size,
        actions_different=int((distance > 0).sum()),
        beyond_one_bin=int((distance > 1.5 * bin_width).sum()),
    )
