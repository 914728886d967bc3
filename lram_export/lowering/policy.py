"""What exporters read: one step graph with everything that describes it, and the model it has to equal."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.identity import identity
from lram_export.model.graph import Graph
from lram_export.runtimes.protocol import Runtime
from lram_export.spec.codes import MatrixEntry, QuantizedMatrix
from lram_export.spec.cost import QuantizationCost, Widths
from lram_export.spec.interface import Interface
from lram_export.spec.parity import FLOAT32
from lram_export.spec.precision import PRECISIONS
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import Floats, StepSpec, array
from lram_export.system.devices import Platform
from lram_export.version import __version__


@dataclass(frozen=True, kw_only=True)
class LoweredPolicy(ABC):
    """A policy ready for exporters; ``task`` is what it is asked to do, of a model that can do several things;
    ``interface`` what it says of its robot, which the graph does its part of.

    ``quantization`` has the codes of the quantized matrices. Graph and reference then hold their dequantized values:
    they are the oracle that the targets are compared with. ``platform`` is what to compile for, where a target has a
    choice, ``state_format`` how one that has a choice keeps the state, unless told otherwise where it runs.
    """

    name: str
    graph: Graph
    task: TaskSpec | None = None
    interface: Interface = field(default_factory=Interface)
    quantization: Quantization | None = None
    platform: Platform = field(default_factory=Platform)
    state_format: str = FLOAT32

    @property
    @abstractmethod
    def model(self) -> dict[str, Any]:
        """The network as the manifest describes it, JSON values."""

    @property
    @abstractmethod
    def source(self) -> dict[str, str]:
        """``file``, what the policy was read from, and ``sha256``, which tells its weights from any others."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Number of weights."""

    @property
    @abstractmethod
    def bin_width(self) -> Widths:
        """Distance of two neighbouring action values; 0 where any two are apart. One, or one for each action value."""

    @abstractmethod
    def matrix_names(self) -> tuple[str, ...]:
        """Every matrix of the step graph that can be quantized, in the graph's order."""

    def quantizable(self) -> LoweredPolicy:
        """The same with every matrix that a precision applies to in a linear layer; what is quantized is made of it."""
        return self

    @abstractmethod
    def state_matrices(self) -> frozenset[str]:
        """Those whose inputs keep float32 (`w8a8`): their outputs drive the recurrent state and its exponentials."""

    @abstractmethod
    def reference(self, batch_size: int | None = None) -> Runtime:
        """What every target has to equal: the network itself, in PyTorch; it shares the weights.

        ``batch_size``: rows, default: those of ``spec``.
        """

    @abstractmethod
    def fresh_graph(self) -> Graph:
        """The step graph once more, to replace layers in; it shares the weights."""

    @abstractmethod
    def dequantized(self, matrices: Mapping[str, QuantizedMatrix]) -> LoweredPolicy:
        """The policy that computes with what codes stand for in place of its own matrices; ``quantization`` as here."""

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
        """Bytes of weights one step reads, each once: codes and scales of quantized matrices, else float32; 1 where
        there are none."""
        size = 4 * sum(p.numel() for p in self.graph.parameters())
        if self.quantization is not None:
            for matrix in self.quantization.matrices.values():
                size += matrix.stored_bytes - 4 * matrix.codes.size
        return max(size, 1)

    def metadata(self) -> dict[str, str]:
        """The manifest's essentials, for formats that carry string properties."""
        return {
            "lram.generator": f"lram-export {__version__}",
            **identity(
                name=self.name,
                precision=self.precision,
                task=self.task,
                model=self.model,
                spec=self.spec,
                interface=self.interface,
                source_sha256=self.source["sha256"],
            ),
        }


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


def matrix_values(policy: LoweredPolicy, name: str) -> NDArray[np.float32]:
    """A matrix of the step graph, (out, in)."""
    return array(policy.graph.layers()[name].weight)


def with_quantization(policy: LoweredPolicy, quantization: Quantization) -> LoweredPolicy:
    """The policy that computes with the dequantized matrices, and carries their codes."""
    return dataclasses.replace(policy.dequantized(quantization.matrices), quantization=quantization)
