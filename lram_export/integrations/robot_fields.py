"""What a policy takes and gives, as programs for robots have it: one vector of a robot's state, images, one action."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lram_export.errors import UsageError
from lram_export.spec.bounds import IMAGE
from lram_export.spec.images import ImageSpec
from lram_export.spec.interface import FieldInterface, Interface, actions_of, observations_of
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import StepSpec, TensorSpec

COLOURS = 3


@dataclass(frozen=True)
class RobotFields:
    """The fields of a policy, for one robot.

    Attributes:
        state: observations of numbers; one after the other they are the vector of the robot's state.
        images: observations of pixels by name, and what each of them is.
        action: the vector that a robot acts by: the policy's first output.
        state_names: what the elements of the state are called; None: not all are known.
        action_names: likewise of the action.
    """

    state: tuple[TensorSpec, ...]
    images: Mapping[str, ImageSpec]
    action: TensorSpec
    state_names: tuple[str, ...] | None
    action_names: tuple[str, ...] | None

    @property
    def state_size(self) -> int:
        """How many numbers the state has; 0: the policy sees images alone."""
        return sum(_width(tensor) for tensor in self.state)

    @property
    def action_size(self) -> int:
        """How many numbers an action has."""
        return _width(self.action)


def robot_fields(
    spec: StepSpec, task: TaskSpec | None, interface: Interface, where: str | Path, program: str
) -> RobotFields:
    """The fields of a policy as a program for robots has them.

    Args:
        spec: of a step.
        task: what the policy was exported for.
        interface: what is known of its robot.
        where: the bundle, for errors.
        program: who takes it, for errors.

    Raises:
        UsageError: that program cannot run the policy, and what would work.
    """
    if task is not None and task.reward_feedback == "observed":
        raise UsageError(
            f"{where}: the policy is told every reward (reward feedback 'observed'), and {program} gives it none; "
            f"export with --reward-feedback none"
        )
    spec = spec.with_batch(1)
    state, images = [], {}
    for name, tensor in observations_of(spec).items():
        if tensor.dtype == "float32":
            state.append(tensor)
        else:
            images[name] = _image(tensor, interface.observation.get(name), where, program)
    action, *others = actions_of(spec).values()
    if action.dtype != "float32":
        raise UsageError(
            f"{where}: {action.name} is a choice ({action.dtype}), and an action of {program} is numbers; "
            f"--to onnx-closed writes a file that chooses"
        )
    driven = [other.name for other in others if other.name in interface.action]
    if driven:
        raise UsageError(
            f"{where}: the robot is driven by {', '.join([action.name, *driven])}, and {program} takes one action; "
            f"export a module whose first output is all of them"
        )
    return RobotFields(
        tuple(state),
        images,
        action,
        _names(tuple(state), interface.observation),
        _names((action,), interface.action),
    )


def _image(tensor: TensorSpec, of: FieldInterface | None, where: str | Path, program: str) -> ImageSpec:
    """What an image is: as the interface says, or else of three colours in a size that no frame is brought to."""
    if of is not None and of.image is not None:
        return of.image
    shape = tensor.shape[1:]
    if tensor.dtype == "uint8" and len(shape) == len(IMAGE) and shape[0] == COLOURS:
        return ImageSpec(shape[1], shape[2], "chw", "rgb")
    raise UsageError(
        f"{where}: {tensor.name} is {tensor.dtype} of shape {shape}, and {program} gives numbers, and images of three "
        f"colours; if it is an image, export with an --interface that says which"
    )


def _names(tensors: tuple[TensorSpec, ...], said: Mapping[str, FieldInterface]) -> tuple[str, ...] | None:
    found = [said[tensor.name].elements if tensor.name in said else None for tensor in tensors]
    return None if not found or None in found else tuple(name for names in found for name in names or ())


def _width(tensor: TensorSpec) -> int:
    return math.prod(tensor.shape[1:])
