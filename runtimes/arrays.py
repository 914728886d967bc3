"""Runtimes whose steps give a new state beside the old one, in arrays of numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.runtimes.base import BaseRuntime
from lram_export.runtimes.protocol import State, StepOutput
from lram_export.spec.tensors import InitialTensors, StepSpec


class ArrayRuntime(BaseRuntime):
    """Keeps the state in ``_state``, by name; a step hands its results to :meth:`_results`."""

    in_place = False

    def __init__(self, spec: StepSpec, initial: InitialTensors) -> None:
        super().__init__(spec, initial)
        self._state = self._next = {name: value.copy() for name, value in self._initial.items()}

    def _results(self, arrays: Sequence[NDArray[Any]]) -> StepOutput:
        """The outputs of a step, from them and the next states in the order of the specification."""
        count = len(self.spec.outputs)
        self._next = dict(zip(self._state, arrays[count:], strict=True))
        return StepOutput(self.spec, arrays[:count])

    def _commit(self) -> None:
        self._state = self._next

    def _save(self) -> State:
        return {name: array.copy() for name, array in self._state.items()}

    def _load(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        self._state = {tensor.name: state[tensor.name].copy() for tensor in self.spec.states}

    def _restart(self, rows: list[int]) -> None:
        self._state = self._save()
        for name, array in self._state.items():
            array[rows] = self._initial[name][rows]

    def _free(self) -> None:
        self._state = self._next = {}
