"""The oracle of a policy of one's own: the module itself, called as its user would, numbers made fit outside of it."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from lram_export.runtimes.arrays import ArrayRuntime
from lram_export.runtimes.protocol import StepOutput
from lram_export.spec.interface import Interface, clamped, normalized, scaled
from lram_export.step_module.graph import returned
from lram_export.step_module.policy import IS_FIRST, StepPolicy


class ModuleRuntime(ArrayRuntime):
    """The module in eager float32; rows that start an episode are given their initial state before it is called."""

    def __init__(self, policy: StepPolicy, batch_size: int, interface: Interface | None = None) -> None:
        self._network, self._interface = policy.spec(batch_size), Interface() if interface is None else interface
        super().__init__(self._interface.of(self._network), policy.initial_tensors())
        self._policy = policy

    @torch.no_grad()
    def _step(self) -> StepOutput:
        names = [tensor.name for tensor in self.spec.inputs]
        given = {name: array.copy() for name, array in zip(names, self._inputs.arrays, strict=True)}
        for tensor in self._network.inputs:
            if tensor.name in self._interface.normalizations:
                normalization = self._interface.normalizations[tensor.name]
                given[tensor.name] = normalized(given[tensor.name], tensor, normalization)
        state = {name: array.copy() for name, array in self._state.items()}
        if not self._policy.takes_is_first:
            rows = given[IS_FIRST] > 0
            for name, array in state.items():
                array[rows] = self._initial[name][rows]
        arguments = [*(given[name] for name in self._policy.observation), *state.values()]
        found = returned(self._policy.module(*map(torch.from_numpy, arguments)), tuple(self._policy.action))
        arrays = [tensor.detach().numpy() for tensor in found]
        count = len(self._policy.action)
        return self._results([*self._as_the_robot_takes_them(arrays[:count]), *arrays[count:]])

    def _as_the_robot_takes_them(self, outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Scaled and clamped; what is clamped is followed, at the end, by what it was before."""
        unclamped = []
        for place, tensor in enumerate(self._network.outputs):
            of = self._interface.scalings.get(tensor.name)
            if of is not None:
                before = scaled(outputs[place], tensor, of)
                outputs[place] = clamped(before, tensor, of)
                unclamped += [before] if of.limits is not None else []
        return [*outputs, *unclamped]
