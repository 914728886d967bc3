"""From what a user has to what exporters read: one step graph with everything that describes it."""

from __future__ import annotations

from typing import overload

from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.errors import UsageError
from lram_export.lowering.model import LoweredModel, lower_model
from lram_export.lowering.module import LoweredModule, lower_module
from lram_export.lowering.policy import LoweredPolicy, Quantization, matrix_values, with_quantization
from lram_export.spec.interface import Interface
from lram_export.spec.tasks import TaskSpec
from lram_export.step_module.policy import StepPolicy

__all__ = [
    "LoweredModel",
    "LoweredModule",
    "LoweredPolicy",
    "Quantization",
    "Source",
    "lower",
    "matrix_values",
    "own_interface",
    "with_quantization",
]

Source = Checkpoint | StepPolicy
"""What can be exported."""


@overload
def lower(
    source: Checkpoint, task: TaskSpec | None, *, name: str, batch_size: int = 1, interface: Interface | None = None
) -> LoweredModel: ...
@overload
def lower(
    source: StepPolicy, task: TaskSpec | None, *, name: str, batch_size: int = 1, interface: Interface | None = None
) -> LoweredModule: ...
@overload
def lower(
    source: Source, task: TaskSpec | None, *, name: str, batch_size: int = 1, interface: Interface | None = None
) -> LoweredPolicy: ...
def lower(
    source: Source, task: TaskSpec | None, *, name: str, batch_size: int = 1, interface: Interface | None = None
) -> LoweredPolicy:
    """Lower a checkpoint for a task, or a policy of one's own, which has none; ``interface``: what is
    said of its robot, default: what the source says itself.

    Raises:
        UsageError: see :func:`~lram_export.lowering.model.lower_model` and
            :func:`~lram_export.lowering.module.lower_module`; or a task where there can be none, or none where it is
            needed.
    """
    interface = own_interface(source, task) if interface is None else interface
    if isinstance(source, StepPolicy):
        if task is not None:
            raise UsageError(f"task: {source.name} does one thing only; leave the task out")
        return lower_module(source, name=name, batch_size=batch_size, interface=interface)
    if task is None:
        raise UsageError(f"task: {source.path} can do several; say which, e.g. resolve_task('metaworld/reach-v2')")
    return lower_model(source, task, name=name, batch_size=batch_size, interface=interface)


def own_interface(source: Source, task: TaskSpec | None) -> Interface:
    """What a source says of its robot itself; raises CheckpointError where that does not fit the task."""
    if isinstance(source, StepPolicy):
        return source.interface
    return Interface() if task is None else source.interface_for(task)
