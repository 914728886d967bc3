"""The step on a GPU: inputs, outputs, weights and state in the GPU's memory, the state updated there in place.

Unlike on a processor this imports the package `tvm`: it compiles the kernels, which the library holds as CUDA's source,
when they are loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from lram_export.bundle.artifact import LoadedArtifact
from lram_export.runtimes.base import BaseRuntime
from lram_export.runtimes.protocol import State, StepOutput
from lram_export.targets.tvm.interface import STEP_FUNCTION, from_stored, to_stored
from lram_export.targets.tvm.virtual_machine import loadable

_LOADING, _RECORDING = threading.Lock(), threading.Lock()
"""While one thread records a graph, CUDA refuses the recording if another allocates or copies; seen on an H200. So
policies are loaded one after the other, and a step waits for a recording."""


def on_device(weights: list[NDArray[Any]], device: Any) -> list[Any]:
    """Weights in a GPU's memory, for the runtimes that share them."""
    with _LOADING, _RECORDING:
        return [_tensor(array, device) for array in weights]


def _tensor(array: NDArray[Any], device: Any) -> Any:
    return tvm.runtime.tensor(np.ascontiguousarray(array), device)


class GpuRuntime(BaseRuntime):
    """See :class:`~lram_export.runtimes.protocol.Runtime`; ``device`` is TVM's, a processor for tests.

    A machine replays the graph that it recorded, with the arrays of that step: so every runtime has its own, and
    shares but the weights with others.
    """

    def __init__(
        self, library: Path, weights: list[Any], artifact: LoadedArtifact, memory_columns: int, device: Any
    ) -> None:
        super().__init__(artifact.spec, artifact.initial)
        with _LOADING:
            self._prepare(library, weights, memory_columns, device)

    def _prepare(self, library: Path, weights: list[Any], memory_columns: int, device: Any) -> None:
        spec = self.spec
        self._columns, self._device = memory_columns, device
        self._outputs = StepOutput.zeros(spec)
        action, logits = self._outputs
        self._input_tensors = [self._tensor(array) for array in self._inputs.arrays]
        self._output_tensors = [self._tensor(action), self._tensor(logits.reshape(len(logits), -1))]
        self._state = {t.name: self._tensor(to_stored(t, self._initial[t.name], memory_columns)) for t in spec.states}
        machine = relax.VirtualMachine(tvm.runtime.load_module(loadable(library)), device)
        arguments = [*self._input_tensors, *self._output_tensors, *weights, *self._state.values()]
        machine.save_function(STEP_FUNCTION, "run", *arguments, include_return=False)
        self._machine: Any = machine
        self._run = machine["run"]
        with _RECORDING:  # compiles the kernels and records them as a graph; what it made of the state is replaced
            self._run()
        self._load(self._initial)

    def _tensor(self, array: NDArray[Any]) -> Any:
        return _tensor(array, self._device)

    def _step(self) -> StepOutput:
        with _RECORDING:
            return self._launched()

    def _launched(self) -> StepOutput:
        for tensor, array in zip(self._input_tensors, self._inputs.arrays, strict=True):
            tensor.copyfrom(array)
        self._run()
        for result, tensor in zip(self._outputs, self._output_tensors, strict=True):
            np.copyto(result, tensor.numpy().reshape(result.shape))  # waits for the GPU
        return self._outputs

    def _save(self) -> State:
        return {t.name: from_stored(t, self._state[t.name].numpy(), self._columns) for t in self.spec.states}

    def _load(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        for tensor in self.spec.states:
            stored = to_stored(tensor, state[tensor.name], self._columns)
            self._state[tensor.name].copyfrom(np.ascontiguousarray(stored))

    def _restart(self, rows: list[int]) -> None:
        for state in self.spec.states:
            tensor = self._state[state.name]
            value = tensor.numpy()
            value[rows] = to_stored(state, self._initial[state.name], self._columns)[rows]
            tensor.copyfrom(value)

    def _free(self) -> None:
        self._machine = self._run = None
        self._state, self._input_tensors, self._output_tensors = {}, [], []
