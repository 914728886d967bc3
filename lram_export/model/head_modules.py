"""Heads as torch modules: as the training code has them, and as part of the step graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lram_export.backbones.layers import linear
from lram_export.model.heads import ActionBins, Head
from lram_export.model.interface_stage import chosen_values
from lram_export.spec.interface import Interface
from lram_export.spec.tasks import TaskSpec


@dataclass(frozen=True)
class HeadModules:
    """What the network needs of one kind of head.

    Attributes:
        reference: (head, hidden size) -> the module of the training code: (B, hidden) -> (B, all logits).
        step: (head, that module, task) -> a linear layer with the rows that the task's actions are chosen from.
        select: (all logits, head, task) -> those that an action is chosen from, in the shape of ``action_logits``.
        shape: (the logits of ``step``, head, task) -> the same in the shape of ``action_logits``.
        decode: (``action_logits``, head, task, :func:`chosen_actions`) -> ``action``.
    """

    reference: Callable[[Any, int], nn.Module]
    step: Callable[[Any, nn.Module, TaskSpec], nn.Linear]
    select: Callable[[Tensor, Any, TaskSpec], Tensor]
    shape: Callable[[Tensor, Any, TaskSpec], Tensor]
    decode: Callable[[Tensor, Any, TaskSpec, Tensor | None], Tensor]


def _reference(head: ActionBins, hidden_size: int) -> nn.Module:
    return nn.Sequential(nn.Linear(hidden_size, head.act_dim * head.num_actions))


def _step(head: ActionBins, module: Any, task: TaskSpec) -> nn.Linear:
    rows, layer = head.used_rows(task), module[0]
    return linear(layer.weight[:rows], layer.bias[:rows])


def _select(logits: Tensor, head: ActionBins, task: TaskSpec) -> Tensor:
    """(B, act_dim * num_actions) -> (B, action_dim, num_actions), or (B, discrete_actions) for a discrete task."""
    if task.action == "discrete":
        return logits[:, : head.discrete_actions]
    return logits.view(-1, head.act_dim, head.num_actions)[:, : task.action_dim]


def _shape(logits: Tensor, head: ActionBins, task: TaskSpec) -> Tensor:
    return logits if task.action == "discrete" else logits.view(-1, task.action_dim, head.num_actions)


def _decode(action_logits: Tensor, head: ActionBins, task: TaskSpec, values: Tensor | None = None) -> Tensor:
    """Arg max; for continuous actions the left edge of the chosen bin of [-1, 1], or what ``values`` has for it.

    Returns:
        (B, action_dim) float32, or (B, 1) int64 for a discrete task.
    """
    token = action_logits.argmax(dim=-1)
    if task.action == "discrete":
        return token[:, None]
    if values is not None:
        return values.expand(len(token), -1, -1).gather(2, token[:, :, None])[:, :, 0]
    bins = (token - head.discrete_actions).clamp(min=0).to(torch.float32)
    return bins * (2.0 / head.action_channels) - 1.0


MODULES = {ActionBins.kind: HeadModules(_reference, _step, _select, _shape, _decode)}
"""Kind -> its modules."""


def chosen_actions(head: Head, task: TaskSpec, interface: Interface) -> Tensor | None:
    """What an action can be where an interface scales or clamps it, (1, action_dim, num_actions); else None."""
    action = head.outputs(task, 1)[0]
    if action.name not in interface.scalings:
        return None
    return torch.from_numpy(chosen_values(interface, action, head.values()))[None]


def head_modules(head: Head) -> HeadModules:
    """The modules of a head's kind."""
    return MODULES[head.kind]
