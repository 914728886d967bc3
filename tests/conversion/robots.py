"""Bundles for programs that run robots: a policy that sees, and one that knows its joints."""

from __future__ import annotations

from pathlib import Path

import torch

from lram_export import ExportOptions, StepPolicy, export_bundle
from lram_export.spec.images import ImageSpec
from lram_export.spec.interface import FieldInterface, Interface
from tests.step_module.modules import Seeing, seeing

ONLY = ("onnxruntime",)
JOINTS = tuple(f"joint_{i}.pos" for i in range(6))
FRAMES = ImageSpec(16, 16, "chw", "rgb", interpolation="opencv-area")


def bundle_that_sees(path: Path, image: ImageSpec | None = None) -> Path:
    """A vector and an image in; an action, and a value that is none, out; a state that does not start at zero."""
    made = seeing()
    observation = {"camera": FieldInterface(image=image)} if image is not None else {}
    interface = Interface(30.0, observation, {"action": FieldInterface(elements=JOINTS)})
    torch.manual_seed(0)
    policy = StepPolicy(
        Seeing(), observation=made.observation, action=made.action, state=made.state, interface=interface
    )
    return export_bundle(policy, None, path, ExportOptions(ONLY, report=False)).path


def bundle_of_two_sensors(path: Path) -> Path:
    """Two vectors and a matrix in, which are one state to a robot."""

    class Summing(torch.nn.Linear):
        def forward(self, position: torch.Tensor, wrench: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.cat([position, wrench.flatten(1), past], 1))

    torch.manual_seed(5)
    interface = Interface(
        observation={
            "position": FieldInterface(elements=("a", "b", "c")),
            "wrench": FieldInterface(elements=("fx", "fy", "tx", "ty")),
            "past": FieldInterface(elements=("d", "e")),
        }
    )
    observation = {"position": 3, "wrench": (2, 2), "past": 2}
    policy = StepPolicy(Summing(9, 4), observation=observation, action=4, interface=interface)
    return export_bundle(policy, None, path, ExportOptions(ONLY, report=False)).path
