"""Mamba under the names of the `mamba_ssm` package: a token at a time, as its ``step`` computes it, or sequences.

The package itself needs a GPU, so its few lines are here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lram_export.backbones.mamba.config import MambaConfig
from lram_export.backbones.protocol import State
from lram_export.backbones.token_by_token import TokenByToken
from lram_export.spec.tensors import state_name

Cache = dict[int, tuple[Tensor, Tensor]]
"""Block -> what the package keeps of it: the last inputs of the convolution, (B, inner, kernel), the newest included;
and the memory of the state space, (B, inner, state)."""


class MambaReference(TokenByToken):
    """Blocks, and the norm behind the last one."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.sizes = config
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.norm_f = norm(config)

    def forward(self, x: Tensor) -> Tensor:
        """Whole sequences at once, as in training: (B, tokens, hidden) -> the same."""
        states = self.sizes.states(len(x), 1)
        left, _ = self.token(x, self.nest({state.name: x.new_zeros(state.shape) for state in states}))
        return left

    def nest(self, state: Mapping[str, Tensor]) -> Cache:
        """See :class:`~lram_export.backbones.protocol.ReferenceBackbone`."""
        # the package keeps one input more than the convolution needs; the oldest is shifted out first
        return {
            block: (
                F.pad(state[state_name(block, "conv")].transpose(1, 2), (1, 0)),
                state[state_name(block, "ssm")].transpose(1, 2),
            )
            for block in range(self.sizes.num_blocks)
        }

    def token(self, x: Tensor, nested: Cache) -> tuple[Tensor, Cache]:
        """See :class:`~lram_export.backbones.token_by_token.TokenByToken`; of several tokens each sees those before."""
        after: Cache = {}
        for number, block in enumerate(self.layers):
            x, *kept = block(x, *nested[number])
            after[number] = (kept[0], kept[1])
        left: Tensor = self.norm_f(x)
        return left, after

    def flatten(self, nested: Cache) -> State:
        """See :class:`~lram_export.backbones.protocol.ReferenceBackbone`."""
        state: State = {}
        for block, (window, memory) in nested.items():
            state[state_name(block, "conv")] = window[:, :, 1:].transpose(1, 2).contiguous()
            state[state_name(block, "ssm")] = memory.transpose(1, 2).contiguous()
        return state


class Block(nn.Module):
    """Norm, mixer, residual."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.norm, self.mixer = norm(config), Mixer(config)

    def forward(self, x: Tensor, window: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, T, hidden), and the block's state; the same out."""
        y, window, memory = self.mixer(self.norm(x), window, memory)
        return x + y, window, memory


class Mixer(nn.Module):
    """Convolution and selective state space of one block."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        hidden, inner, size = config.hidden_size, config.inner_size, config.state_size
        self.parts = [config.dt_rank, size, size]
        self.in_proj = nn.Linear(hidden, 2 * inner, bias=config.bias)
        self.conv1d = nn.Conv1d(inner, inner, config.conv_kernel_size, groups=inner, bias=config.conv_bias)
        self.x_proj = nn.Linear(inner, sum(self.parts), bias=False)
        self.dt_proj = nn.Linear(config.dt_rank, inner)
        self.A_log = nn.Parameter(torch.zeros(inner, size))
        self.D = nn.Parameter(torch.zeros(inner))
        self.out_proj = nn.Linear(inner, hidden, bias=config.bias)

    def forward(self, x: Tensor, window: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, T, hidden), window and memory as in :data:`Cache`; the same out."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        inputs = torch.cat([window[:, :, 1:], u.transpose(1, 2)], dim=-1)
        u = F.silu(self.conv1d(inputs)).transpose(1, 2)
        dt, B, C = self.x_proj(u).split(self.parts, dim=-1)
        dt, A = F.softplus(self.dt_proj(dt)), -torch.exp(self.A_log)
        seen = []
        for step, added, b, c in zip(*(part.unbind(1) for part in (dt, dt * u, B, C)), strict=True):
            memory = torch.exp(step[..., None] * A) * memory + added[..., None] * b[:, None]
            seen.append((memory @ c[..., None])[..., 0])
        y = torch.stack(seen, dim=1) + self.D * u
        return self.out_proj(y * F.silu(z)), inputs[:, :, -window.shape[-1] :], memory


def norm(config: MambaConfig) -> nn.Module:
    """A norm over the hidden size."""
    kind = nn.RMSNorm if config.rms_norm else nn.LayerNorm
    return kind(config.hidden_size, eps=config.norm_epsilon)


def build(config: MambaConfig, context_length: int = 1) -> MambaReference:
    """The reference; ``context_length`` changes nothing, sequences may be of any length."""
    return MambaReference(config)
