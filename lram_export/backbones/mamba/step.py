"""Mamba blocks of the step graph: the tokens of a step as one chunk.

Every weight is read once per step. Only the recurrence goes from token to token: with step sizes dt, convolved inputs
u, and B and C of each token,

    h_t = exp(dt_t A) h_(t-1) + dt_t u_t B_t        y_t = C_t h_t + D u_t

A token that a row does not see has dt = 0, which leaves h as it was, and no input for the convolution: it is skipped
only where an episode starts, and then the window holds nothing but zeros, whether it moves or not.

h lies as (B, state, inner): channels last, so that everything of a channel is a vector operation over the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lram_export.backbones.layers import Convolution, RMSNorm
from lram_export.backbones.mamba.reference import MambaReference
from lram_export.backbones.stack import BlockStack
from lram_export.spec.tokens import TokenLayout


def build(reference: MambaReference, layout: TokenLayout, padding: Tensor) -> BlockStack:
    """The stack of the step graph; weights are shared with the reference where they are used whole."""
    return BlockStack((MambaBlock(block) for block in reference.layers), step_norm(reference.norm_f), layout)


class MambaBlock(nn.Module):
    """Norm, input projection, convolution, selective state space, gate, output projection, residual."""

    parts = ("conv", "ssm")

    def __init__(self, block: Any) -> None:
        super().__init__()
        mixer = block.mixer
        self.selected = mixer.parts
        self.norm = step_norm(block.norm)
        self.in_proj, self.x_proj = mixer.in_proj, mixer.x_proj
        self.dt_proj, self.out_proj = mixer.dt_proj, mixer.out_proj
        self.conv = Convolution(mixer.conv1d)
        self.A = nn.Parameter(-torch.exp(mixer.A_log).t().contiguous())  # (state, inner)
        self.D = mixer.D

    def forward(
        self, x: Tensor, first: Tensor, present: Tensor, conv: Tensor, ssm: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens (B, T, hidden) and the block's state in; the same out."""
        u, z = self.in_proj(self.norm(x)).chunk(2, dim=-1)
        u, next_conv = self.conv(u, conv, first, present)
        dt, B, C = self.x_proj(u).split(self.selected, dim=-1)
        dt = F.softplus(self.dt_proj(dt)) * present[..., None]
        added = dt * u
        # a row that starts an episode forgets its memory whatever it holds: 0 times NaN would be NaN
        h = torch.where(first[:, None, None], 0.0, ssm)
        outputs = []
        for token in range(x.shape[1]):
            decay = torch.exp(dt[:, token, None] * self.A)
            h = decay * h + B[:, token, :, None] * added[:, token, None]
            outputs.append(C[:, token, None] @ h)
        y = torch.cat(outputs, dim=1) + self.D * u
        return x + self.out_proj(y * F.silu(z)), next_conv, h


def step_norm(norm: nn.Module) -> nn.Module:
    """A norm of the reference as part of the step graph."""
    return RMSNorm(norm) if isinstance(norm, nn.RMSNorm) else norm
