"""What quantization cost: the dequantized oracle against the float32 reference, over the same steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.spec.cost import QuantizationCost
from lram_export.spec.parity import TOLERANCES

Array = NDArray[np.generic]


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
