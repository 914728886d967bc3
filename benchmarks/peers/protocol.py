"""What a peer is: something that makes files of a step graph, and something that takes steps from these files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lram_export.errors import LramError
from lram_export.runtimes.protocol import State, StepOutput
from lram_export.spec.tensors import StepSpec

if TYPE_CHECKING:
    from lram_export.lowering.model import LoweredModel

Array = NDArray[Any]


@dataclass(frozen=True)
class Source:
    """What a peer builds from: the lowered model in float32, and the same as ONNX, standard operators alone."""

    policy: LoweredModel
    onnx: Path
    threads: int

    def arguments(self) -> tuple[Any, ...]:
        """Example inputs of the graph, tensors of torch: zeros, and the state at the start of an episode."""
        import torch

        spec = self.policy.spec
        inputs = [torch.zeros(tensor.shape) for tensor in spec.inputs]
        return (*inputs, *map(torch.from_numpy, initial_state(spec)))


class Session(ABC):
    """Takes steps and keeps the state in the peer's own tensors: what a step gives is what the next one gets, as it is.

    Has what :func:`~lram_export.verification.verify.replay` needs of a runtime.
    """

    def __init__(self, spec: StepSpec) -> None:
        self.spec = spec
        self._outputs = len(spec.outputs)
        self.reset()

    def reset(self) -> None:
        """Begin with the state at the start of an episode."""
        self._state: list[Any] = [self._tensor(array) for array in initial_state(self.spec)]

    def step(self, *inputs: Array) -> StepOutput:
        """One step; inputs in the order of ``spec.inputs``."""
        found = self._run([*map(self._tensor, inputs), *self._state])
        self._state = [self._kept(tensor) for tensor in found[self._outputs :]]
        return StepOutput(self.spec, map(self._array, found[: self._outputs]))

    def state(self) -> State:
        """A copy of the state by name."""
        tensors = zip(self.spec.states, self._state, strict=True)
        return {spec.name: np.array(self._array(tensor), np.float32) for spec, tensor in tensors}

    def _kept(self, tensor: Any) -> Any:
        """A next state as the next step takes it."""
        return tensor

    @abstractmethod
    def _run(self, tensors: Sequence[Any]) -> Sequence[Any]:
        """Inputs and states to outputs and next states, in the order of the specification."""

    @abstractmethod
    def _tensor(self, array: Array) -> Any:
        """An array as one of the peer's tensors."""

    @abstractmethod
    def _array(self, tensor: Any) -> Array:
        """One of the peer's tensors as an array."""


class TorchSession(Session):
    """A session whose tensors are those of torch."""

    def _kept(self, tensor: Any) -> Any:
        return tensor.contiguous()  # AOTInductor computes something else with any other strides, and does not say so

    def _tensor(self, array: Array) -> Any:
        import torch

        return torch.from_numpy(array)

    def _array(self, tensor: Any) -> Array:
        found: Array = tensor.numpy()
        return found


@dataclass(frozen=True)
class Peer:
    """Another runtime.

    ``packages`` are those whose versions name it. ``how`` says by precision what computes; ``left_out`` why a precision
    is not there. ``build`` (source, precision, folder) writes into an empty folder what ``load`` makes a session of
    (folder, specification, precision, threads). Each runs in a process of its own, and raises whatever it likes.
    """

    title: str
    packages: tuple[str, ...]
    how: Mapping[str, str]
    build: Callable[[Source, str, Path], None]
    load: Callable[[Path, StepSpec, str, int], Session]
    left_out: Mapping[str, str] = field(default_factory=dict)


def initial_state(spec: StepSpec) -> list[Array]:
    """The state at the start of an episode, in the order of the specification."""
    odd = [state.name for state in spec.states if state.initial is None]
    if odd:
        raise LramError(f"{odd[0]}: starts as a tensor, which peers are not given")
    return [np.full(state.shape, state.initial, np.float32) for state in spec.states]


def versions(peer: Peer) -> dict[str, str]:
    """Versions of the packages of a peer.

    Raises:
        LramError: one is not installed.
    """
    try:
        return {package: version(package) for package in peer.packages}
    except PackageNotFoundError as error:
        raise LramError(f"{peer.title}: the package '{error.name}' is not installed: make peers installs it") from None
