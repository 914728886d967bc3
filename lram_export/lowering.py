"""From a checkpoint and a task to what exporters read: one step graph with everything that describes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from lram_export import __version__
from lram_export.checkpoint import Checkpoint
from lram_export.devices import Platform
from lram_export.errors import UsageError
from lram_export.identity import identity
from lram_export.model import ReferenceModel
from lram_export.quantized import Quantization
from lram_export.specification import StepSpec
from lram_export.step import StepGraph
from lram_export.tasks import TaskSpec


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
                config=self.checkpoint.config,
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
    model = ReferenceModel.from_checkpoint(checkpoint)
    try:
        graph = StepGraph(model, task, batch_size)
    except ValueError as error:
        raise UsageError(f"{checkpoint.path}: {error}") from None
    most = graph.spec.limits["return_to_go"] * task.reward_scale
    if abs(task.target_return) > most:
        raise UsageError(
            f"--target-return: expected a magnitude of at most {most:.2g}, got {task.target_return:g}: beyond, this "
            f"model's arithmetic leaves float32"
        )
    return LoweredPolicy(name, checkpoint, model, graph, task)
