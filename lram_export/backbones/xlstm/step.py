"""xLSTM blocks of the step graph: the tokens of a step as one chunk.

The mathematics is that of the recurrent form, rearranged so that every weight and every state matrix is
read once per step instead of once per token. Per head, with lf = logsigmoid(forget pre-activation), i = input
pre-activation, previous state (C, n, m) and keys k scaled by 1 / sqrt(head width), for tokens t = 1..T:

    m_t  = max(lf_t + m_(t-1), i_t)
    a_t  = exp(lf_1 + ... + lf_t + m - m_t)                     decay of the old state as token t sees it
    D_tj = exp(lf_(j+1) + ... + lf_t + i_j - m_t)  for j <= t   weight of token j as token t sees it
    num  = a_t q_t C + sum_j D_tj (q_t . k_j) v_j
    den  = max(|a_t q_t . n + sum_j D_tj (q_t . k_j)|, exp(-m_t)) + 1e-6
    C'   = a_T C + sum_j D_Tj k_j v_j^T,    n' likewise,    m' = m_T

It differs from single steps of the `xlstm` package only in the order of float32 sums.

Where ``is_first`` is 1, a row starts an episode inside the graph: C and n get decay 0, everything else its
initial value; tokens that are skipped there have the input gate off, forget gate 1, convolution input 0, and the sLSTM
state is passed through.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lram_export.backbones.layers import NEVER, BlockDiagonal, Convolution, HeadNorm, LayerNorm, log_sigmoid
from lram_export.backbones.stack import BlockStack
from lram_export.backbones.xlstm.config import SLSTM_INITIAL_M, XLSTMConfig
from lram_export.backbones.xlstm.reference import XLSTMReference
from lram_export.spec.tokens import TokenLayout

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "relu^2": lambda x: torch.square(F.relu(x)),
    "sigmoid": torch.sigmoid,
    "swish": F.silu,
    "selu": F.selu,
}


def build(reference: XLSTMReference, layout: TokenLayout, padding: Tensor) -> BlockStack:
    """The stack of the step graph; weights are shared with the reference where they are used whole."""
    config = reference.sizes
    blocks: list[nn.Module] = [
        SLSTMBlock(block, config, layout.skipped) if i in config.slstm_at else MLSTMBlock(block, config)
        for i, block in enumerate(reference.layers.blocks)
    ]
    return BlockStack(blocks, LayerNorm(reference.layers.post_blocks_norm), layout)


class MLSTMBlock(nn.Module):
    """Norm, up-projection, mLSTM chunk, gated down-projection, residual."""

    parts = ("conv", "C", "n", "m")

    def __init__(self, block: Any, config: XLSTMConfig) -> None:
        super().__init__()
        layer = block.xlstm
        self.num_heads, self.width, self.inner = config.num_heads, config.head_dim, config.inner_size
        self.norm = LayerNorm(block.xlstm_norm)
        self.proj_up, self.proj_down = layer.proj_up, layer.proj_down
        self.conv = Convolution(layer.conv1d.conv)
        self.q_proj = BlockDiagonal(layer.q_proj)
        self.k_proj = BlockDiagonal(layer.k_proj)
        self.v_proj = BlockDiagonal(layer.v_proj)
        cell = layer.mlstm_cell
        gates = (cell.igate, cell.fgate)
        self.gates = nn.Linear(3 * config.inner_size, 2 * config.num_heads)
        self.gates.weight = nn.Parameter(torch.cat([gate.weight for gate in gates]))
        self.gates.bias = nn.Parameter(torch.cat([gate.bias for gate in gates]))
        self.out_norm = HeadNorm(cell.outnorm, config.num_heads)
        self.skip = layer.learnable_skip

    def forward(
        self, x: Tensor, first: Tensor, present: Tensor, conv: Tensor, C: Tensor, n: Tensor, m: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The tokens (B, T, hidden) and the block's state in; the same out."""
        up, gate = self.proj_up(self.norm(x)).split(self.inner, dim=-1)
        convolved, next_conv = self.conv(up, conv, first, present)
        q, k, v = self.q_proj(convolved), self.k_proj(convolved), self.v_proj(up)
        i, f = self.gates(torch.cat([q, k, v], dim=-1)).transpose(1, 2).split(self.num_heads, dim=1)

        def heads(projected: Tensor) -> Tensor:
            per_head: Tensor = projected.unflatten(2, (self.num_heads, self.width))
            return per_head.transpose(1, 2)

        h, *memory = mlstm_chunk(heads(q), heads(k), heads(v), i, f, first, present, C, n, m)
        h = self.out_norm(h.transpose(1, 2)) + self.skip * convolved
        return x + self.proj_down(h * F.silu(gate)), next_conv, *memory


def mlstm_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    first: Tensor,
    present: Tensor,
    C: Tensor,
    n: Tensor,
    m: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mLSTM cell for the tokens of one step (see the module's formula).

    Args:
        q, k, v: (B, heads, T, width); k not yet scaled.
        i, f: input and forget gate pre-activations (B, heads, T).
        first: (B,) bool, rows that start an episode.
        present: (B, T), 0 where a token is skipped.
        C: (B, heads, width, width). n: (B, heads, width). m: (B, heads).

    Returns:
        Hidden state (B, heads, T, width) before the norm, then C, n and m after the last token.
    """
    k = k * (1.0 / math.sqrt(k.shape[-1]))
    here = present[:, None, :]
    log_f = log_sigmoid(f) * here
    i = torch.where(here > 0, i, NEVER)
    m = torch.where(first[:, None], 0.0, m)
    n = torch.where(first[:, None, None], 0.0, n)

    tokens = log_f.shape[-1]
    spans, future = _spans(tokens, log_f.device)
    # sums of log_f over (0, t] and, for every pair, over (j, t]: exact partial sums, no differences
    sums = log_f @ spans.to(log_f.dtype)
    log_a = sums[..., :tokens] + m[..., None]
    log_D = sums[..., tokens:].unflatten(-1, (tokens, tokens)) + i[..., None, :] + future
    m_t = torch.maximum(log_a, log_D.amax(dim=-1))
    a = torch.exp(log_a - m_t)[..., None]
    D = torch.exp(log_D - m_t[..., None])

    weights = (q @ k.transpose(-1, -2)) * D
    # a row that starts an episode forgets C whatever it holds: 0 times NaN would be NaN
    forgets = first[:, None, None, None]
    numerator = torch.where(forgets, 0.0, a * (q @ C)) + weights @ v
    normalizer = a * (q @ n[..., None]) + weights.sum(dim=-1, keepdim=True)
    h = numerator / (torch.maximum(normalizer.abs(), torch.exp(-m_t)[..., None]) + 1e-6)

    decay = a[..., -1, :]
    weighted_k = k * D[..., -1, :, None]
    next_C = torch.where(forgets, 0.0, decay[..., None] * C) + weighted_k.transpose(-1, -2) @ v
    next_n = decay * n + weighted_k.sum(dim=-2)
    return h, next_C, next_n, m_t[..., -1]


def _spans(tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Constants of a chunk.

    Returns:
        A 0/1 matrix (T, T + T*T) by which log forget gates are multiplied to get their sums over (0, t] for
        every t and over (j, t] for every pair (t, j); and the mask (T, T) that is NEVER where j > t.
    """
    t = torch.arange(tokens, device=device)
    since_start = (t[:, None] <= t[None, :]).float()  # [s, t]
    between = (t[:, None, None] > t[None, None, :]) & (t[:, None, None] <= t[None, :, None])  # [s, t, j]
    future = torch.where(t[None, :] > t[:, None], NEVER, 0.0)
    return torch.cat([since_start, between.float().flatten(1)], dim=1), future


class SLSTMBlock(nn.Module):
    """Norm, sLSTM with input projections for all tokens at once, residual, gated feed-forward, residual."""

    parts = ("conv", "y", "c", "n", "m")

    def __init__(self, block: Any, config: XLSTMConfig, skipped: int) -> None:
        super().__init__()
        self.skipped = skipped
        layer, cell = block.xlstm, block.xlstm.slstm_cell
        self.num_heads, self.hidden = config.slstm_num_heads, config.hidden_size
        self.norm = LayerNorm(block.xlstm_norm)
        self.conv = Convolution(layer.conv1d.conv)
        # The package hands `fgate` to the cell as input gate and `igate` as forget gate: follow the data.
        gates = (layer.fgate, layer.igate, layer.zgate, layer.ogate)
        weights = [gate.weight.transpose(1, 2) for gate in gates]
        self.from_conv = nn.Parameter(torch.cat(weights[:2], dim=2))  # (heads, width, 2 * width)
        self.from_input = nn.Parameter(torch.cat(weights[2:], dim=2))
        self.recurrent = nn.Parameter(cell._recurrent_kernel_.transpose(1, 2).contiguous())
        # (4, heads, width) in the package; per head here
        bias = cell._bias_.view(4, self.num_heads, -1).transpose(0, 1)
        self.bias = nn.Parameter(bias.reshape(self.num_heads, -1).contiguous())
        self.out_norm = HeadNorm(layer.group_norm, self.num_heads)
        self.ffn_norm = LayerNorm(block.ffn_norm)
        self.ffn_up, self.ffn_down = block.ffn.proj_up, block.ffn.proj_down
        self.ffn_size, self.activation = config.ffn_size, ACTIVATIONS[config.ffn_activation]

    def forward(
        self,
        x: Tensor,
        first: Tensor,
        present: Tensor,
        conv: Tensor,
        y: Tensor,
        c: Tensor,
        n: Tensor,
        m: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The tokens (B, T, hidden) and the block's state in; the same out."""
        tokens = x.shape[1]
        normed = self.norm(x)
        convolved, next_conv = self.conv(normed, conv, first, present)

        def heads(features: Tensor) -> Tensor:  # (B, T, hidden) -> (heads, B * T, width)
            return features.view(-1, self.num_heads, self.hidden // self.num_heads).transpose(0, 1)

        projected = torch.cat([heads(convolved) @ self.from_conv, heads(normed) @ self.from_input], dim=2)
        projected = (projected + self.bias[:, None]).unflatten(1, (-1, tokens))

        rows = first[:, None]
        initial = (0.0, 0.0, 0.0, SLSTM_INITIAL_M)
        state = [torch.where(rows, value, part) for value, part in zip(initial, (y, c, n, m), strict=True)]
        outputs = []
        for token in range(tokens):
            after = self.cell(projected[:, :, token], *state)
            if token < self.skipped:  # where an episode starts
                after = [torch.where(rows, old, new) for old, new in zip(state, after, strict=True)]
            state = after
            outputs.append(state[0])
        h = torch.stack(outputs, dim=1).unflatten(2, (self.num_heads, -1))
        x = x + self.out_norm(h)
        gate, up = self.ffn_up(self.ffn_norm(x)).split(self.ffn_size, dim=-1)
        return x + self.ffn_down(self.activation(gate) * up), next_conv, *state

    def cell(self, projected: Tensor, y: Tensor, c: Tensor, n: Tensor, m: Tensor) -> list[Tensor]:
        """One token of the sLSTM cell (arXiv 2405.04517, stabilized form).

        Args:
            projected: input projections plus bias (heads, B, 4 * width), gates i, f, z, o.
            y, c, n, m: state (B, hidden).
        """
        per_head = y.unflatten(1, (self.num_heads, -1)).transpose(0, 1)
        raw = (projected + per_head @ self.recurrent).transpose(0, 1).unflatten(2, (4, -1))
        i, f, z, o = raw.transpose(1, 2).flatten(2).unbind(dim=1)
        log_f = log_sigmoid(f) + m
        m = torch.maximum(i, log_f)
        input_gate, forget_gate = torch.exp(i - m), torch.exp(log_f - m)
        c = forget_gate * c + input_gate * torch.tanh(z)
        n = forget_gate * n + input_gate
        return [torch.sigmoid(o) * c / n, c, n, m]
