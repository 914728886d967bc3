"""What quantization cost, in numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.spec.parity import relative_error
from lram_export.spec.tensors import StepSpec

Array = NDArray[np.generic]
Widths = float | NDArray[np.float64]
"""A distance of action values: one for all, or one for each."""


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
    spec: StepSpec, bin_width: Widths, expected: Mapping[str, Array], actual: Mapping[str, Array]
) -> QuantizationCost:
    """Compare the outputs of the float32 reference with those of another model, step by step.

    Args:
        spec: which outputs there are. Those that are computed count as logits, those that are chosen as actions.
        bin_width: distance of two neighbouring action values; 0 where any two are apart.
        expected: of the reference by name, (steps, ...).
        actual: of the other model, likewise.
    """
    logits, found = (computed_values(spec, side) for side in (expected, actual))
    action, other = (_together(spec, spec.chosen, side) for side in (expected, actual))
    error, distance = np.abs(found - logits), np.abs(other - action)
    return QuantizationCost(
        steps=len(expected[spec.outputs[0].name]),
        relative_error=relative_error(logits, found),
        mean_logit_error=float(error.mean()),
        max_logit_error=float(error.max()),
        actions=action.size,
        actions_different=int((distance > 0).sum()),
        beyond_one_bin=int((distance > 1.5 * np.resize(bin_width, action.shape[1:])).sum()),  # once for every row
    )


def computed_values(spec: StepSpec, outputs: Mapping[str, Array]) -> NDArray[np.float64]:
    """The outputs of steps that are computed as they are, side by side: (steps, n)."""
    return _together(spec, spec.computed, outputs)


def _together(spec: StepSpec, places: tuple[int, ...], outputs: Mapping[str, Array]) -> NDArray[np.float64]:
    """Some of the outputs of steps side by side: (steps, n)."""
    steps = len(outputs[spec.outputs[0].name])
    parts = [outputs[spec.outputs[place].name].reshape(steps, -1) for place in places]
    return np.concatenate([np.zeros((steps, 0)), *parts], axis=1)
