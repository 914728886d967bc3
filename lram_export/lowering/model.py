"""From a checkpoint and a task to a lowered policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.checkpoints.dequantized import dequantized_checkpoint
from lram_export.errors import UsageError
from lram_export.lowering.policy import LoweredPolicy
from lram_export.model.config import ModelConfig, scaled_width
from lram_export.model.matrices import matrix_shapes, state_matrices
from lram_export.model.reference import ReferenceModel, reference_model
from lram_export.model.specification import step_spec
from lram_export.model.step_graph import StepGraph
from lram_export.runtimes.pytorch import PytorchRuntime
from lram_export.spec.codes import QuantizedMatrix
from lram_export.spec.cost import Widths
from lram_export.spec.interface import Interface
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import MAX_FLOAT32


@dataclass(frozen=True, kw_only=True)
class LoweredModel(LoweredPolicy):
    """A model of this project's backbones, lowered for a task; graph and reference model share its weights."""

    checkpoint: Checkpoint
    reference_model: ReferenceModel
    graph: StepGraph
    task: TaskSpec

    @property
    def config(self) -> ModelConfig:
        """The architecture."""
        return self.checkpoint.config

    @property
    def model(self) -> dict[str, Any]:
        """See :class:`LoweredPolicy`."""
        return self.config.to_json()

    @property
    def source(self) -> dict[str, str]:
        """See :class:`LoweredPolicy`."""
        return {"file": self.checkpoint.path.name, "sha256": self.checkpoint.sha256}

    @property
    def parameters(self) -> int:
        """See :class:`LoweredPolicy`."""
        return self.checkpoint.parameters

    @property
    def bin_width(self) -> Widths:
        """See :class:`LoweredPolicy`."""
        return scaled_width(self.config.head.bin_width(self.task), self.interface)

    def matrix_names(self) -> tuple[str, ...]:
        """See :class:`LoweredPolicy`."""
        known = matrix_shapes(self.config, self.task)
        return tuple(name for name in self.graph.layers() if name in known)

    def state_matrices(self) -> frozenset[str]:
        """See :class:`LoweredPolicy`."""
        return state_matrices(self.config)

    def reference(self, batch_size: int | None = None) -> PytorchRuntime:
        """See :class:`LoweredPolicy`."""
        spec = self.spec if batch_size is None else self.spec.with_batch(batch_size)
        return PytorchRuntime(self.reference_model, spec, self.task, self.interface)

    def fresh_graph(self) -> StepGraph:
        """See :class:`LoweredPolicy`."""
        return self._again(self.checkpoint).graph

    def dequantized(self, matrices: Mapping[str, QuantizedMatrix]) -> LoweredModel:
        """See :class:`LoweredPolicy`."""
        return self._again(dequantized_checkpoint(self.checkpoint, matrices))

    def _again(self, checkpoint: Checkpoint) -> LoweredModel:
        lowered = lower_model(
            checkpoint, self.task, name=self.name, batch_size=self.spec.batch_size, interface=self.interface
        )
        return dataclasses.replace(lowered, quantization=self.quantization, platform=self.platform)


def lower_model(
    checkpoint: Checkpoint, task: TaskSpec, *, name: str, batch_size: int = 1, interface: Interface | None = None
) -> LoweredModel:
    """Build the reference model and its step graph for a task.

    Raises:
        UsageError: the checkpoint cannot do the task (encoder, observation or action too large, a return beyond
            float32), or the interface does not fit it.
    """
    interface = Interface() if interface is None else interface
    try:
        interface.check(step_spec(checkpoint.config, task, batch_size))
    except ValueError as error:
        raise UsageError(f"interface: {error}") from None
    model = reference_model(checkpoint.config, checkpoint.weights, task, interface)
    try:
        graph = StepGraph(model, task, batch_size, interface)
    except ValueError as error:
        raise UsageError(f"{checkpoint.path}: {error}") from None
    aim = graph.spec.input("return_to_go")
    most = MAX_FLOAT32 if aim is None or aim.limit is None else aim.limit * task.reward_scale
    if abs(task.target_return) > most:
        raise UsageError(
            f"--target-return: expected a magnitude of at most {most:.2g}, got {task.target_return:g}: beyond, this "
            f"model's arithmetic leaves float32"
        )
    return LoweredModel(
        name=name, checkpoint=checkpoint, reference_model=model, graph=graph, task=task, interface=interface
    )
