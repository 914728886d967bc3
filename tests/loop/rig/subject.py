"""The bundle that is flown: its actions say which reading they were chosen by, at which step and by which bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lram_export import ExportOptions, StepPolicy, export_bundle
from lram_export.spec.interface import FieldInterface, Interface, Limits, Safety

JOINTS = 2
STAMP = 2 * JOINTS
"""Element of the observation: number of the reading."""

OBSERVATION, ACTION = STAMP + 1, JOINTS + 3
CHOSEN_BY, STEP, VERSION = range(JOINTS, ACTION)
"""Elements of the action beside the joints' targets."""

REACH, MOST_CHANGE, SEEN = 1.0, 0.05, 4.0
"""Of a target: rad to either side, rad per step; of a position or goal as it is observed: rad to either side."""

ANY = 16_000_000.0
"""Whole numbers up to it are exact."""


class ToTheGoal(torch.nn.Module):
    """Targets beyond the goal, which limits and safety hold back."""

    def __init__(self, version: int) -> None:
        super().__init__()
        self.register_buffer("version", torch.full((1, 1), float(version)))

    def forward(self, observation: Any, count: Any) -> Any:
        position, goal = observation[:, :JOINTS], observation[:, JOINTS:STAMP]
        count = count + 1.0
        version = self.version.expand(observation.shape[0], 1)
        return torch.cat([position + 2.0 * (goal - position), observation[:, STAMP:], count, version], 1), count


def write_subject(path: Path, version: int = 1, rate: float = 200.0) -> Path:
    """Export it."""
    reach = (SEEN,) * STAMP
    seen = FieldInterface(limits=Limits((*(-most for most in reach), 0.0), (*reach, ANY)))
    far = (REACH,) * JOINTS
    safety = Safety(most_change=(MOST_CHANGE,) * JOINTS + (2 * ANY,) * 3)
    done = FieldInterface(
        limits=Limits((*(-most for most in far), 0.0, 0.0, 0.0), (*far, ANY, ANY, ANY)), safety=safety
    )
    policy = StepPolicy(
        ToTheGoal(version),
        observation=OBSERVATION,
        action=ACTION,
        state={"count": 1},
        interface=Interface(rate, {"observation": seen}, {"action": done}),
    )
    export_bundle(policy, None, path, ExportOptions(("native",), report=False, reference_steps=20))
    return path
