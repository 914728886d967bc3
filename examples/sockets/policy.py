"""Writes a bundle for the simulated arm: `python -m sockets.policy arm.lram`. Its policy goes to the goal."""

from __future__ import annotations

import sys
from typing import Any

import torch

from lram_export import ExportOptions, StepPolicy, export_bundle
from lram_export.spec.interface import FieldInterface, Interface, Limits, Safety

from .arm import MOST_SPEED, MOST_TURN

JOINTS = 3
ELEMENTS = tuple(f"{what}_{i}" for what in ("position", "velocity", "goal") for i in range(JOINTS))


class ToTheGoal(torch.nn.Module):
    """Targets a little way ahead of where the joints are."""

    def forward(self, observation: Any) -> Any:
        """(B, 9) -> (B, 3)."""
        position, goal = observation[:, :JOINTS], observation[:, 2 * JOINTS :]
        return position + 0.2 * torch.tanh(5 * (goal - position))


def main() -> None:
    """Export it, with what the loop has to know of the arm."""
    reach = (MOST_TURN + 0.1,) * JOINTS + (MOST_SPEED + 0.1,) * JOINTS + (MOST_TURN,) * JOINTS
    seen = FieldInterface(elements=ELEMENTS, limits=Limits(tuple(-most for most in reach), reach))
    done = FieldInterface(limits=Limits(-MOST_TURN, MOST_TURN), safety=Safety(most_change=0.05))
    interface = Interface(50.0, {"observation": seen}, {"action": done})
    policy = StepPolicy(ToTheGoal(), observation=3 * JOINTS, action=JOINTS, interface=interface)
    export_bundle(policy, None, sys.argv[1], ExportOptions(("native",), report=False, reference_steps=50))


if __name__ == "__main__":
    main()
