"""The oracle of a policy of one's own: the module itself, called as its user would."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from lram_export.runtimes.base import BaseRuntime
from lram_export.runtimes.protocol import State, StepOutput
from lram_export.step_module.graph import returned
from lram_export.step_module.policy import IS_FIRST, StepPolicy


class ModuleRuntime(BaseRuntime):
    """The module in eager float32; rows that start an episode are given their initial state before it is called."""

    in_place = False

    def __init__(self, policy: StepPolicy, batch_size: int) -> None:
        super().__init__(policy.spec(batch_size), policy.initial_tensors())
        self._policy = policy
        self._state = self._next = {s.name: np.array(self._initial[s.name]) for s in self.spec.states}

    @torch.no_grad()
    def _step(self) -> StepOutput:
        names = [tensor.name for tensor in self.spec.inputs]
        given = {name: array.copy() for name, array in zip(names, self._inputs.arrays, strict=True)}
        state = {name: array.copy() for name, array in self._state.items()}
        if not self._policy.takes_is_first:
            rows = given[IS_FIRST] > 0
            for name, array in state.items():
                array[rows] = self._initial[name][rows]
        arguments = [*(given[name] for name in self._policy.observation), *state.values()]
        found = returned(self._policy.module(*map(torch.from_numpy, arguments)), tuple(self._policy.action))
        arrays = [tensor.detach().numpy() for tensor in found]
        count = len(self.spec.outputs)
        self._next = dict(zip(state, arrays[count:], strict=True))
        return StepOutput(self.spec, arrays[:count])

    def _commit(self) -> None:
        self._state = self._next

    def _save(self) -> State:
        return {name: array.copy() for name, array in self._state.items()}

    def _load(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        self._state = {s.name: state[s.name].copy() for s in self.spec.states}

    def _restart(self, rows: list[int]) -> None:
        self._state = self._save()
        for spec in self.spec.states:
            self._state[spec.name][rows] = self._initial[spec.name][rows]

    def _free(self) -> None:
        self._state = self._next = {}
