"""A module as a step graph: where a row starts an episode, its state begins with the initial one inside the graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lram_export.model.graph import Graph
from lram_export.model.interface_stage import InterfaceStage
from lram_export.spec.interface import Interface
from lram_export.step_module.policy import IS_FIRST, StepPolicy


class ModuleGraph(Graph):
    """The step of a :class:`~lram_export.step_module.policy.StepPolicy`."""

    def __init__(self, policy: StepPolicy, batch_size: int = 1, interface: Interface | None = None) -> None:
        """Wrap the module; its weights are shared. Raises ValueError where the interface does not fit it."""
        super().__init__()
        self.policy_module = policy.module
        self.interface = Interface() if interface is None else interface
        spec = policy.spec(batch_size)
        for name in self.interface.scalings:
            if any(t.name == name and spec.scores_of(t) is not None for t in spec.outputs):
                # of a model of ours it is looked up among all that it can be, which of a module nobody knows
                raise ValueError(
                    f"action.{name}: scaling and limits are of numbers that are computed; this one is chosen from "
                    f"{name}_logits: scale and clamp it in the module, or give the scores another name"
                )
        self._stage = InterfaceStage(self.interface, spec)
        self.spec = self._stage.spec
        self._observations, self._outputs = tuple(policy.observation), tuple(policy.action)
        self._initial = {name: torch.tensor(values) for name, values in policy.initial_tensors().items()}
        self.eval()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """See :class:`~lram_export.model.graph.Graph`."""
        count = len(self.spec.inputs)
        given = dict(zip((t.name for t in self.spec.inputs), self._stage.before(tensors[:count]), strict=True))
        state = tensors[count:]
        if IS_FIRST not in self._observations:
            state = tuple(map(self._started, self.spec.states, state, [given[IS_FIRST] > 0] * len(state)))
        found = returned(self.policy_module(*(given[name] for name in self._observations), *state), self._outputs)
        count = len(self._outputs)
        return (*self._stage.after(found[:count]), *found[count:])

    def _started(self, spec: Any, state: Tensor, first: Tensor) -> Tensor:
        initial = spec.initial if spec.initial is not None else self._initial[spec.name]
        return torch.where(first.view(-1, *[1] * (state.dim() - 1)), initial, state)

    def initial_tensors(self) -> dict[str, Tensor]:
        """See :class:`~lram_export.model.graph.Graph`."""
        return dict(self._initial)

    def layers(self) -> dict[str, nn.Linear]:
        """Every linear layer under its path in the module."""
        return {path: part for path, part in self.policy_module.named_modules() if isinstance(part, nn.Linear)}


def returned(result: Any, outputs: tuple[str, ...]) -> tuple[Tensor, ...]:
    """What a module returned, in one row: outputs, then states."""
    if isinstance(result, Tensor):
        return (result,)
    if isinstance(result, Mapping):
        if set(result) != set(outputs):
            raise TypeError(f"returned outputs {sorted(map(str, result))}, expected {sorted(outputs)}")
        return tuple(tensor for name in outputs for tensor in returned(result[name], ()))
    if isinstance(result, tuple | list):
        return tuple(tensor for part in result for tensor in returned(part, outputs))
    raise TypeError(f"returned {type(result).__name__}, expected tensors")


def sharing_copy(module: nn.Module, instead: Mapping[int, Any] | None = None) -> nn.Module:
    """A module of its own with the same tensors, so that layers can get other ones.

    Args:
        module: what to copy.
        instead: by the ``id`` of a tensor or a part: what the copy has in its place, wherever it appears.
    """
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {**{id(tensor): tensor for tensor in tensors}, **(instead or {})})
