"""What quantization cost: the dequantized oracle against the float32 reference, over the same steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.config import ModelConfig
from lram_export.parity import TOLERANCES, relative_error
from lram_export.tasks import TaskSpec

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
    config: ModelConfig,
    task: TaskSpec,
    expected: tuple[Array, Array],
    actual: tuple[Array, Array],
) -> QuantizationCost:
    """Compare (actions, action logits) of the float32 reference with those of another model, step by step."""
    action, logits = expected
    error = np.abs(actual[1].astype(np.float64) - logits.astype(np.float64))
    distance = np.abs(actual[0].astype(np.float64) - action.astype(np.float64))
    one_bin = 0.0 if task.action == "discrete" else 2.0 / config.action_channels
    return QuantizationCost(
        steps=len(action),
        relative_error=relative_error(logits, actual[1]),
        mean_logit_error=float(error.mean()),
        max_logit_error=float(error.max()),
        actions=action.size,
        actions_different=int((distance > 0).sum()),
        beyond_one_bin=int((distance > 1.5 * one_bin).sum()),
    )


COST_MARGIN = 0.02
"""How far a cost may be off that was measured again over the same steps, relative: float32 sums differ by machine."""


@dataclass(frozen=True)
class CostCheck:
    """What quantization cost, measured again, beside what the manifest states; None where it states nothing."""

    measured: QuantizationCost
    stated: Mapping[str, Any] | None

    @property
    def passed(self) -> bool | None:
        """Whether it is what the manifest states; None if that states nothing."""
        return None if self.stated is None else not self.failures()

    def failures(self) -> list[str]:
        """One line per value that is not what the manifest states."""
        lines = []
        for name, measured in self.measured.to_json().items():
            stated = None if self.stated is None else self.stated.get(name)
            if self.stated is not None and not _as_stated(name, measured, stated, self.measured.actions):
                lines.append(f"{name} is {measured:.6g}, the manifest states {stated}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        stated = None if self.stated is None else dict(self.stated)
        measured = self.measured.to_json()
        return {"passed": self.passed, "measured": measured, "stated": stated, "failures": self.failures()}


def _as_stated(name: str, measured: float, stated: object, actions: int) -> bool:
    if isinstance(stated, bool) or not isinstance(stated, int | float):
        return False
    if name in ("steps", "actions"):
        return measured == stated
    if isinstance(measured, int):  # actions that were nearly tied
        return abs(measured - stated) <= COST_MARGIN * actions
    return abs(measured - stated) <= COST_MARGIN * stated + TOLERANCES["fp32"].logit
