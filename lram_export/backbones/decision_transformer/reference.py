"""The GPT-2 of the training code under its names, but for matrices, which are (out, in).

The training code's own class needs an old version of the `transformers` package, so its few lines are here: the whole
window at once, or the newest tokens behind a cache, the oldest tokens of which are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lram_export.backbones.decision_transformer.config import STEP_TOKENS, WINDOW, DecisionTransformerConfig
from lram_export.backbones.protocol import State
from lram_export.spec.tensors import state_name
from lram_export.spec.tokens import TokenLayout

KeyValue = tuple[Tensor, Tensor]
"""Keys and values, (B, heads, tokens, width)."""


@dataclass
class Past:
    """What is kept of former steps.

    Attributes:
        window: the tokens, (B, tokens, hidden); None with a cache.
        cache: keys and values of every block, oldest token first.
        index: (B,), where in the ring of the state the oldest step lies.
    """

    window: Tensor | None
    cache: list[KeyValue]
    index: Tensor


class DecisionTransformerReference(nn.Module):
    """Positions, blocks, and the norm behind the last one."""

    def __init__(self, config: DecisionTransformerConfig) -> None:
        super().__init__()
        self.sizes = config
        self.wpe = nn.Embedding(STEP_TOKENS * config.context_length, config.hidden_size)
        self.h = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)

    @torch.no_grad()
    def initial_tensors(self, padding: Tensor) -> dict[str, Tensor]:
        """See :class:`~lram_export.backbones.protocol.ReferenceBackbone`: what steps of padding leave behind."""
        if self.sizes.context == WINDOW:
            tokens = padding.roll(-1, dims=0).repeat(self.sizes.context_length, 1)  # the reward comes last
            return {state_name(0, "tokens"): tokens[: self.sizes.window_tokens - STEP_TOKENS]}
        x = padding.repeat(self.sizes.context_length - 1, 1)[None]
        x, found = x + self.wpe.weight[: x.shape[1]], {}
        for number, block in enumerate(self.h):
            x, (key, value) = block(x, None, is_causal=True)
            found[state_name(number, "key")], found[state_name(number, "value")] = key[0], value[0]
        return found

    def forward(self, tokens: Tensor) -> Tensor:
        """Whole windows at once, as in training: (B, tokens, hidden) -> the same."""
        x = tokens + self.wpe.weight[: tokens.shape[1]]
        for block in self.h:
            x, _ = block(x, None, is_causal=True)
        left: Tensor = self.ln_f(x)
        return left

    def nest(self, state: Mapping[str, Tensor]) -> Past:
        """See :class:`~lram_export.backbones.protocol.ReferenceBackbone`."""
        if self.sizes.context == WINDOW:
            window = state[state_name(0, "tokens")]
            return Past(window, [], torch.zeros(len(window)))
        index = state[state_name(0, "index")]
        return Past(
            None,
            [
                (
                    _rolled(state[state_name(block, "key")], -STEP_TOKENS * index),
                    _rolled(state[state_name(block, "value")], -STEP_TOKENS * index),
                )
                for block in range(self.sizes.num_blocks)
            ],
            index,
        )

    def step(self, tokens: Tensor, first: Tensor, layout: TokenLayout, nested: Past) -> tuple[Tensor, Past]:
        """See :class:`~lram_export.backbones.protocol.ReferenceBackbone`."""
        read = layout.read_position - len(layout)
        if nested.window is not None:
            window = torch.cat([nested.window, tokens], dim=1)
            return self(window)[:, read], Past(window[:, STEP_TOKENS:], [], nested.index)
        x, after = tokens + self.wpe.weight[-STEP_TOKENS:], []
        # the training code masks nothing but at the first step, which it takes with all its padding at once
        mask = torch.ones(len(x), 1, STEP_TOKENS, self.sizes.cached_tokens + STEP_TOKENS, dtype=torch.bool)
        mask[first] = mask[first].tril(self.sizes.cached_tokens)
        for block, past in zip(self.h, nested.cache, strict=True):
            x, (key, value) = block(x, past, mask=mask)
            after.append((key[:, :, STEP_TOKENS:], value[:, :, STEP_TOKENS:]))
        index = (nested.index + 1) % (self.sizes.context_length - 1)
        return self.ln_f(x[:, read]), Past(None, after, index)

    def flatten(self, nested: Past) -> State:
        """See :class:`~lram_export.backbones.protocol.ReferenceBackbone`."""
        if nested.window is not None:
            return {state_name(0, "tokens"): nested.window}
        state: State = {}
        for block, (key, value) in enumerate(nested.cache):
            state[state_name(block, "key")] = _rolled(key, STEP_TOKENS * nested.index)
            state[state_name(block, "value")] = _rolled(value, STEP_TOKENS * nested.index)
            state[state_name(block, "index")] = nested.index
        return state


def _rolled(rows: Tensor, shifts: Tensor) -> Tensor:
    """(B, heads, tokens, width) with the tokens of every row moved on by its shift, the last ones to the front."""
    return torch.stack([row.roll(int(shift), dims=1) for row, shift in zip(rows, shifts, strict=True)])


class Block(nn.Module):
    """Attention and feed-forward layers, each behind a norm and beside a residual connection."""

    def __init__(self, config: DecisionTransformerConfig) -> None:
        super().__init__()
        hidden, epsilon = config.hidden_size, config.norm_epsilon
        self.ln_1, self.attn = nn.LayerNorm(hidden, eps=epsilon), Attention(config)
        self.ln_2, self.mlp = nn.LayerNorm(hidden, eps=epsilon), FeedForward(config)

    def forward(
        self, x: Tensor, past: KeyValue | None, mask: Tensor | None = None, is_causal: bool = False
    ) -> tuple[Tensor, KeyValue]:
        """Tokens (B, T, hidden) and what they see before them; the same, and it with their own keys and values."""
        attended, seen = self.attn(self.ln_1(x), past, mask, is_causal)
        x = x + attended
        return x + self.mlp(self.ln_2(x)), seen


class Attention(nn.Module):
    """Scaled dot-product attention; `c_attn` gives queries, keys and values in this order."""

    def __init__(self, config: DecisionTransformerConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.num_heads = config.num_heads
        self.c_attn, self.c_proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)

    def forward(
        self, x: Tensor, past: KeyValue | None, mask: Tensor | None, is_causal: bool
    ) -> tuple[Tensor, KeyValue]:
        """As :meth:`Block.forward`, without the residual connection."""
        query, key, value = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=2)
        )
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)
        return self.c_proj(seen.transpose(1, 2).flatten(2)), (key, value)


class FeedForward(nn.Module):
    """Two layers with an exact GELU between them."""

    def __init__(self, config: DecisionTransformerConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.hidden_size, config.ffn_size)
        self.c_proj = nn.Linear(config.ffn_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden) -> the same."""
        return self.c_proj(F.gelu(self.c_fc(x)))  # type: ignore[no-any-return]


def build(config: DecisionTransformerConfig, context_length: int = 1) -> DecisionTransformerReference:
    """The reference; ``context_length`` changes nothing, the config has its own."""
    return DecisionTransformerReference(config)
