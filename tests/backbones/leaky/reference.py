"""What training computes, token by token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lram_export.backbones.protocol import State
from lram_export.backbones.token_by_token import TokenByToken

from .config import STATE, LeakyConfig


class LeakyReference(TokenByToken):
    def __init__(self, config: LeakyConfig) -> None:
        super().__init__()
        self.mix = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.leak = nn.Parameter(torch.zeros(config.hidden_size))
        self.start = nn.Parameter(torch.zeros(config.hidden_size))

    def initial_tensors(self, padding: Tensor) -> State:
        return {STATE: self.start}

    def nest(self, state: State) -> State:
        return dict(state)

    def flatten(self, nested: State) -> State:
        return nested

    def token(self, x: Tensor, nested: State) -> tuple[Tensor, State]:
        total = torch.sigmoid(self.leak) * nested[STATE] + torch.tanh(self.mix(x[:, 0]))
        return x + total[:, None], {STATE: total}


def build(config: LeakyConfig, context_length: int = 1) -> LeakyReference:
    return LeakyReference(config)
