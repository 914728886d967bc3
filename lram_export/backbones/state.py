"""States of a batch: the initial one, and rows of one in place of those of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lram_export.backbones.protocol import State
from lram_export.spec.tensors import StateSpec


def initial_state(states: Sequence[StateSpec], tensors: Mapping[str, Tensor]) -> State:
    """The state at the start of an episode; ``tensors`` are those that do not start as a number, for one row."""
    return {
        spec.name: torch.full(spec.shape, spec.initial)
        if spec.initial is not None
        else tensors[spec.name].expand(spec.shape).clone()
        for spec in states
    }


def select_rows(rows: Tensor, where_true: Mapping[str, Tensor], where_false: Mapping[str, Tensor]) -> State:
    """Per batch row: the first state where ``rows`` (B,) is true, the second elsewhere."""
    return {
        name: torch.where(rows.view(-1, *[1] * (tensor.dim() - 1)), where_true[name], tensor)
        for name, tensor in where_false.items()
    }
