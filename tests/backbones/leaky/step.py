"""The same as part of the step graph: the matrix is read once for all tokens of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lram_export.backbones.protocol import State
from lram_export.spec.tokens import TokenLayout

from .config import STATE
from .reference import LeakyReference


@dataclass(frozen=True)
class Whole:
    """The only stage: all of it."""

    run: Callable[..., tuple[Tensor, ...]]
    name: str = "mix"
    states: tuple[str, ...] = (STATE,)


class LeakyStack(nn.Module):
    def __init__(self, reference: LeakyReference, layout: TokenLayout) -> None:
        super().__init__()
        self.mix, self.start = reference.mix, reference.start
        self.leak = nn.Parameter(torch.sigmoid(reference.leak))
        self.position = layout.read_position

    def forward(self, tokens: Tensor, first: Tensor, present: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        left, *after = self.run(tokens, first, present, *state)
        return (self.read(left), *after)

    def run(self, tokens: Tensor, first: Tensor, present: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.where(first[:, None], self.start, total)
        added, sums = torch.tanh(self.mix(tokens)), []
        for t in range(tokens.shape[1]):
            total = torch.where(present[:, t, None] > 0, self.leak * total + added[:, t], total)
            sums.append(total)
        return tokens + torch.stack(sums, dim=1), total

    def stages(self) -> list[Whole]:
        return [Whole(self.run)]

    def initial_tensors(self) -> State:
        return {STATE: self.start}

    def read(self, tokens: Tensor) -> Tensor:
        return tokens[:, self.position]


def build(reference: LeakyReference, layout: TokenLayout, padding: Tensor) -> LeakyStack:
    return LeakyStack(reference, layout)
