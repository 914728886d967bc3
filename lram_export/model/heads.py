"""Heads: from what the backbone leaves to an action."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lram_export.backbones.layers import linear
from lram_export.model.config import ModelConfig
from lram_export.spec.tasks import TaskSpec

if TYPE_CHECKING:
    from lram_export.model.reference import ReferenceModel


def prune_logits(logits: Tensor, config: ModelConfig, task: TaskSpec) -> Tensor:
    """The logits an action is chosen from.

    Args:
        logits: (B, act_dim * num_actions), the whole head.
        config: the model.
        task: says how many of them count.

    Returns:
        (B, action_dim, num_actions), or (B, discrete_actions) for a discrete task.
    """
    if task.action == "discrete":
        return logits[:, : config.discrete_actions]
    return logits.view(-1, config.act_dim, config.num_actions)[:, : task.action_dim]


def decode_action(action_logits: Tensor, config: ModelConfig, task: TaskSpec) -> Tensor:
    """Choose the action: arg max; for continuous actions the left edge of the chosen bin of [-1, 1].

    Returns:
        (B, action_dim) float32, or (B, 1) int64 for a discrete task.
    """
    token = action_logits.argmax(dim=-1)
    if task.action == "discrete":
        return token[:, None]
    bins = (token - config.discrete_actions).clamp(min=0).to(torch.float32)
    return bins * (2.0 / config.action_channels) - 1.0


def pruned_head(model: ReferenceModel, task: TaskSpec) -> nn.Linear:
    """Without the rows that no action of the task reads."""
    config = model.config
    head: Any = model.action_net[0]
    rows = config.discrete_actions if task.action == "discrete" else task.action_dim * config.num_actions
    return linear(head.weight[:rows], head.bias[:rows])
