"""Heads: from what the backbone leaves to an action. Free of torch; modules are in ``head_modules.py``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from lram_export.backbones.protocol import Draw, WeightSpec
from lram_export.spec.bounds import MOST_ACTIONS
from lram_export.spec.json_fields import Fields, whole_number
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import TensorSpec

MOST_TOKENS = 1 << 14


class Head(Protocol):
    """From hidden units to an action, and what it is chosen from."""

    kind: ClassVar[str]

    @property
    def act_dim(self) -> int:
        """The most action values it gives."""

    def weights(self, hidden_size: int) -> Sequence[WeightSpec]:
        """Its weights, in the original code's names."""

    def used_rows(self, task: TaskSpec) -> int:
        """How many rows of its matrix the actions of a task are chosen from: the first ones."""

    def outputs(self, task: TaskSpec, batch_size: int) -> tuple[TensorSpec, TensorSpec]:
        """``action`` and ``action_logits`` of a step; raises ValueError where task and head do not fit."""

    def values(self) -> NDArray[np.float32]:
        """What a continuous action can be, one for each of its logits: (n,)."""

    def bin_width(self, task: TaskSpec) -> float:
        """Distance of two neighbouring values of a continuous action; 0 where actions are discrete."""

    def fact(self) -> str:
        """What it gives, in words."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with ``kind``."""


@dataclass(frozen=True)
class ActionBins:
    """``act_dim`` action values of ``discrete_actions`` + ``action_channels`` logits each.

    Tokens below ``discrete_actions`` are discrete actions, the others bins of [-1, 1]. The action is the arg max; a
    continuous one is the left edge of its bin.
    """

    kind: ClassVar[str] = "action_bins"
    act_dim: int = 8
    action_channels: int = 256
    discrete_actions: int = 18

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that no checkpoint has."""
        whole_number(self.act_dim, "act_dim", 1, MOST_ACTIONS)
        whole_number(self.action_channels, "action_channels", 1, MOST_TOKENS)
        whole_number(self.discrete_actions, "discrete_actions", 0, MOST_TOKENS)

    @property
    def num_actions(self) -> int:
        """Number of action tokens per action dimension (274 in the published models)."""
        return self.action_channels + self.discrete_actions

    def weights(self, hidden_size: int) -> list[WeightSpec]:
        """See :class:`Head`."""
        rows = self.act_dim * self.num_actions
        return [
            WeightSpec("action_net.0.weight", (rows, hidden_size), Draw(1 / math.sqrt(hidden_size)), "head"),
            WeightSpec("action_net.0.bias", (rows,), Draw(0.1)),
        ]

    def used_rows(self, task: TaskSpec) -> int:
        """See :class:`Head`."""
        return self.discrete_actions if task.action == "discrete" else task.action_dim * self.num_actions

    def outputs(self, task: TaskSpec, batch_size: int) -> tuple[TensorSpec, TensorSpec]:
        """See :class:`Head`."""
        if task.action == "discrete":
            if self.discrete_actions < 1:
                raise ValueError("action: the task is discrete, but the model has no discrete actions")
            return (
                TensorSpec("action", (batch_size, 1), "int64"),
                TensorSpec("action_logits", (batch_size, self.discrete_actions), "float32"),
            )
        if task.action_dim > self.act_dim:
            raise ValueError(f"action_dim: the task has {task.action_dim}, the model gives {self.act_dim}")
        return (
            TensorSpec("action", (batch_size, task.action_dim), "float32"),
            TensorSpec("action_logits", (batch_size, task.action_dim, self.num_actions), "float32"),
        )

    def values(self) -> NDArray[np.float32]:
        """See :class:`Head`: the left edges of the bins; of a token that is no bin the first one's."""
        bins = np.maximum(np.arange(self.num_actions) - self.discrete_actions, 0).astype(np.float32)
        return bins * np.float32(2.0 / self.action_channels) - np.float32(1.0)

    def bin_width(self, task: TaskSpec) -> float:
        """See :class:`Head`."""
        return 0.0 if task.action == "discrete" else 2.0 / self.action_channels

    def fact(self) -> str:
        """See :class:`Head`."""
        return f"{self.act_dim} x ({self.discrete_actions} discrete + {self.action_channels} bins)"

    def to_json(self) -> dict[str, Any]:
        """See :class:`Head`."""
        return {"kind": self.kind, **asdict(self)}

    @staticmethod
    def from_json(fields: Fields) -> ActionBins:
        """Read what :meth:`to_json` wrote; raises ValueError."""
        fields.only("kind", "act_dim", "action_channels", "discrete_actions")
        return ActionBins(
            fields.integer("act_dim", 1, MOST_ACTIONS),
            fields.integer("action_channels", 1, MOST_TOKENS),
            fields.integer("discrete_actions", 0, MOST_TOKENS),
        )


KINDS: dict[str, Callable[[Fields], Head]] = {ActionBins.kind: ActionBins.from_json}
"""What JSON may hold -> who reads it."""


def read_head(fields: Fields) -> Head:
    """Read what a head's ``to_json`` wrote; raises ValueError naming the field."""
    return KINDS[fields.text("kind", choices=tuple(KINDS))](fields)
