"""The step on a GPU: inputs, outputs, weights and state in the GPU's memory, the state updated there in place.

Unlike on a processor this imports the package `tvm`: it compiles the kernels, which the library holds as CUDA's source,
when they are loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from lram_export.runtimes.protocol import State, StepInputs, StepOutput, check_rows, check_state
from lram_export.specification import StepSpec
from lram_export.tvm.interface import STEP_FUNCTION, from_stored, stored_shape, to_stored


class GpuRuntime:
    """See :class:`~lram_export.runtimes.protocol.Runtime`; ``device`` is TVM's, a processor for tests."""

    def __init__(
        self, library: Path, weights: list[NDArray[Any]], spec: StepSpec, memory_columns: int, device: Any
    ) -> None:
        self.spec = spec
        self._columns, self._device = memory_columns, device
        self._inputs = StepInputs(spec)
        self._outputs = StepOutput(*(np.zeros(t.shape, t.dtype) for t in spec.outputs))
        action, logits = self._outputs
        self._input_tensors = [self._tensor(array) for array in self._inputs.arrays]
        self._output_tensors = [self._tensor(action), self._tensor(logits.reshape(len(logits), -1))]
        self._initial = {t.name: np.full(stored_shape(t, memory_columns), t.initial, t.dtype) for t in spec.states}
        self._tensors = {name: self._tensor(value) for name, value in self._initial.items()}
        machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), device)
        arguments = [*self._input_tensors, *self._output_tensors, *map(self._tensor, weights), *self._tensors.values()]
        machine.save_function(STEP_FUNCTION, "run", *arguments, include_return=False)
        self._machine: Any = machine
        self._run = machine["run"]

    def _tensor(self, array: NDArray[Any]) -> Any:
        return tvm.runtime.tensor(np.ascontiguousarray(array), self._device)

    def step(
        self,
        observation: NDArray[np.generic],
        return_to_go: NDArray[np.float32],
        reward: NDArray[np.float32],
        is_first: NDArray[np.float32],
    ) -> StepOutput:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        if self._machine is None:
            raise RuntimeError("the runtime is closed")
        self._inputs.fill(observation, return_to_go, reward, is_first)
        for tensor, array in zip(self._input_tensors, self._inputs.arrays, strict=True):
            tensor.copyfrom(array)
        self._run()
        for result, tensor in zip(self._outputs, self._output_tensors, strict=True):
            np.copyto(result, tensor.numpy().reshape(result.shape))  # waits for the GPU
        return self._outputs

    def state(self) -> State:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        return {t.name: from_stored(t, self._tensors[t.name].numpy(), self._columns) for t in self.spec.states}

    def load_state(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        check_state(self.spec, state)
        for tensor in self.spec.states:
            stored = to_stored(tensor, state[tensor.name], self._columns)
            self._tensors[tensor.name].copyfrom(np.ascontiguousarray(stored))

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        chosen = check_rows(rows, self.spec.batch_size)
        for name, tensor in self._tensors.items():
            value = tensor.numpy()
            value[chosen] = self._initial[name][chosen]
            tensor.copyfrom(value)

    def close(self) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        self._machine = self._run = None
        self._tensors, self._input_tensors, self._output_tensors = {}, [], []
