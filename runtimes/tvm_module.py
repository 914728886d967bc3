"""Runtime of the target `tvm` for a module of one's own: a function that gives new outputs and a new state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.artifact import LoadedArtifact
from lram_export.runtimes.base import BaseRuntime
from lram_export.runtimes.protocol import State, StepInputs, StepOutput
from lram_export.targets.tvm.interface import MODULE_FUNCTION
from lram_export.targets.tvm.virtual_machine import VirtualMachine, aligned, use_threads


class TvmModuleRuntime(BaseRuntime):
    """The step with its inputs, weights and state in arrays that stay where they are."""

    in_place = False

    def __init__(
        self, machine: VirtualMachine, weights: list[NDArray[Any]], artifact: LoadedArtifact, threads: int
    ) -> None:
        spec = artifact.spec
        super().__init__(spec, artifact.initial, StepInputs(spec, [aligned(t.shape, t.dtype) for t in spec.inputs]))
        self._threads = threads
        self._state = {t.name: aligned(t.shape, t.dtype) for t in spec.states}
        self._next: list[NDArray[Any]] = []
        self._arrays = [*self._inputs.arrays, *self._state.values(), *weights]
        self._run: Any = machine.returning(MODULE_FUNCTION, self._arrays)
        self.reset()

    def _step(self) -> StepOutput:
        use_threads(self._threads)
        # copies: a result may be one of the arguments, as it is
        found = [np.array(np.from_dlpack(tensor)) for tensor in self._run()]
        count = len(self.spec.outputs)
        self._next = found[count:]
        return StepOutput(self.spec, found[:count])

    def _commit(self) -> None:
        for array, value in zip(self._state.values(), self._next, strict=True):
            np.copyto(array, value)

    def _save(self) -> State:
        return {name: array.copy() for name, array in self._state.items()}

    def _load(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        for name, array in self._state.items():
            np.copyto(array, state[name])

    def _restart(self, rows: list[int]) -> None:
        for name, array in self._state.items():
            array[rows] = self._initial[name][rows]

    def _free(self) -> None:
        self._run = None
        self._state, self._next, self._arrays = {}, [], []
