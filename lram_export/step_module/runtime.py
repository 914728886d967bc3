"""The oracle of a policy of one's own: the module itself, called as its user would."""

from __future__ import annotations

import torch

from lram_export.runtimes.arrays import ArrayRuntime
from lram_export.runtimes.protocol import StepOutput
from lram_export.step_module.graph import returned
from lram_export.step_module.policy import IS_FIRST, StepPolicy


class ModuleRuntime(ArrayRuntime):
    """The module in eager float32; rows that start an episode are given their initial state before it is called."""

    def __init__(self, policy: StepPolicy, batch_size: int) -> None:
        super().__init__(policy.spec(batch_size), policy.initial_tensors())
        self._policy = policy

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
        return self._results([tensor.detach().numpy() for tensor in found])
