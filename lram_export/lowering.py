"""From a checkpoint and a task to what exporters read: one step graph with everything that describes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.identity import identity
from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.checkpoints.dequantized import dequantized_checkpoint
from lram_export.errors import UsageError
from lram_export.model.matrices import matrix_shapes
from lram_export.model.reference import ReferenceModel
from lram_export.model.step_graph import StepGraph
from lram_export.spec.codes import MatrixEntry, QuantizedMatrix
from lram_export.spec.cost import QuantizationCost
from lram_export.spec.precision import PRECISIONS
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import MAX_FLOAT32, Floats, StepSpec, array
from lram_export.system.devices import Platform
from lram_export.version import __version__


@dataclass(frozen=True)
class LoweredPolicy:
    """A policy ready for exporters: the step graph, the reference model it shares weights with, the task.

    ``quantization`` has the codes of the quantized matrices. Checkpoint, model and graph then hold their
    dequantized values: they are the oracle that the targets are compared with. ``platform`` is what to compile for,
    where a target has a choice.
    """

    name: str
    checkpoint: Checkpoint
    model: ReferenceModel
    graph: StepGraph
    task: TaskSpec
    quantization: Quantization | None = None
    platform: Platform = field(default_factory=Platform)

    @property
    def spec(self) -> StepSpec:
        """Names, shapes and dtypes of the step graph."""
        return self.graph.spec

    @property
    def initial_tensors(self) -> dict[str, Floats]:
        """The states that start as a tensor, each for one row."""
        return {name: array(tensor) for name, tensor in self.graph.initial_tensors().items()}

    @property
    def precision(self) -> str:
        """Name of the precision; `fp32` if nothing is quantized."""
        return "fp32" if self.quantization is None else self.quantization.precision

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights one step reads, each once: codes and scales of quantized matrices, else float32."""
        size = 4 * sum(p.numel() for p in self.graph.parameters())
        if self.quantization is not None:
            for matrix in self.quantization.matrices.values():
                size += matrix.stored_bytes - 4 * matrix.codes.size
        return size

    def metadata(self) -> dict[str, str]:
        """The manifest's essentials, for formats that carry string properties."""
        return {
            "lram.generator": f"lram-export {__version__}",
            **identity(
                name=self.name,
                precision=self.precision,
                task=self.task,
                model=self.checkpoint.config.to_json(),
                spec=self.spec,
                source_sha256=self.checkpoint.sha256,
            ),
        }


def lower(checkpoint: Checkpoint, task: TaskSpec, *, name: str, batch_size: int = 1) -> LoweredPolicy:
    """Build the reference model and its step graph for a task.

    Raises:
        UsageError: the checkpoint cannot do the task (encoder, observation or action too large, a return beyond
            float32).
    """
    model = ReferenceModel.from_weights(checkpoint.config, checkpoint.weights)
    try:
        graph = StepGraph(model, task, batch_size)
    except ValueError as error:
        raise UsageError(f"{checkpoint.path}: {error}") from None
    aim = graph.spec.input("return_to_go")
    most = MAX_FLOAT32 if aim is None or aim.limit is None else aim.limit * task.reward_scale
    if abs(task.target_return) > most:
        raise UsageError(
            f"--target-return: expected a magnitude of at most {most:.2g}, got {task.target_return:g}: beyond, this "
            f"model's arithmetic leaves float32"
        )
    return LoweredPolicy(name, checkpoint, model, graph, task)


def with_quantization(policy: LoweredPolicy, quantization: Quantization) -> LoweredPolicy:
    """The policy that computes with the dequantized matrices, and carries their codes."""
    checkpoint = dequantized_checkpoint(policy.checkpoint, quantization.matrices)
    oracle = lower(checkpoint, policy.task, name=policy.name, batch_size=policy.spec.batch_size)
    return dataclasses.replace(oracle, quantization=quantization)


@dataclass(frozen=True)
class Quantization:
    """All quantized matrices of a policy, by name, and how they came about.

    ``precision`` is a name of :data:`~lram_export.spec.precision.PRECISIONS`, or `mixed`; ``method`` is
    `round-to-nearest` or `gptq`; ``calibration`` has the SHA-256 of the recordings; ``choice`` is what `auto`
    measured before it chose the formats, as plain JSON values, and ``cost`` what it measured of the result on the
    episodes that were held out.
    """

    precision: str
    method: str
    matrices: Mapping[str, QuantizedMatrix]
    calibration: tuple[str, ...] = ()
    choice: Mapping[str, Any] | None = None
    cost: QuantizationCost | None = None

    @property
    def entries(self) -> tuple[MatrixEntry, ...]:
        """What the manifest lists."""
        return tuple(MatrixEntry(m.name, m.format, m.shape) for m in self.matrices.values())

    @property
    def quantized_activations(self) -> bool:
        """Whether inputs of the matrices have static 8-bit ranges (`w8a8`)."""
        return self.precision in PRECISIONS and PRECISIONS[self.precision].quantized_activations


def matrix_names(policy: LoweredPolicy) -> tuple[str, ...]:
    """Every matrix of the step graph that can be quantized, in the graph's order."""
    known = matrix_shapes(policy.checkpoint.config, policy.task)
    return tuple(name for name in policy.graph.layers() if name in known)


def matrix_values(policy: LoweredPolicy, name: str) -> NDArray[np.float32]:
    """A matrix of the step graph, (out, in)."""
    return array(policy.graph.layers()[name].weight)
