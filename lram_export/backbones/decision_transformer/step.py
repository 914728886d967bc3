"""A Decision Transformer as part of the step graph.

With the window, a step puts its tokens behind those of the steps before and computes all of them, but of the last block
only what the head reads. With the cache it computes its own tokens alone: their queries meet the keys of the ring and
their own, in any order, since attention is a sum; the oldest step of the ring is overwritten in place, so that nothing
moves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lram_export.backbones.decision_transformer.config import CACHE, STEP_TOKENS
from lram_export.backbones.decision_transformer.reference import DecisionTransformerReference
from lram_export.backbones.layers import NEVER
from lram_export.backbones.stack import BlockStack, BlockStage
from lram_export.spec.tensors import state_name
from lram_export.spec.tokens import TokenLayout


def build(reference: DecisionTransformerReference, layout: TokenLayout, padding: Tensor) -> DecisionTransformerStack:
    """The stack of the step graph; weights are shared with the reference where they are used whole.

    Raises:
        ValueError: tokens in another order than the context's.
    """
    cached = reference.sizes.context == CACHE
    if len(layout) != STEP_TOKENS or cached != layout.tokens[-1].zero or cached == layout.tokens[0].skipped_at_start:
        raise ValueError(f"tokens: not those of the context '{reference.sizes.context}'")
    return DecisionTransformerStack(reference, layout, padding)


class DecisionTransformerStack(BlockStack):
    """Positions, then blocks."""

    def __init__(self, reference: DecisionTransformerReference, layout: TokenLayout, padding: Tensor) -> None:
        config, wpe = reference.sizes, reference.wpe.weight
        self._initial = reference.initial_tensors(padding)
        if config.context == CACHE:
            first: nn.Module = Newest(wpe[-STEP_TOKENS:])
            blocks: list[nn.Module] = [CachedBlock(block, *self._cache(i)) for i, block in enumerate(reference.h)]
        else:
            (tokens,) = self._initial.values()
            first = Window(wpe[: config.window_tokens], tokens, padding[0])
            *most, last = reference.h
            blocks = [*(WindowBlock(block, config.window_tokens) for block in most), LastWindowBlock(last)]
        super().__init__(blocks, reference.ln_f, layout)
        self.positions = first

    def _cache(self, block: int) -> tuple[Tensor, Tensor]:
        return self._initial[state_name(block, "key")], self._initial[state_name(block, "value")]

    def stages(self) -> list[BlockStage]:
        """Positions, and one for each block."""
        positions: Any = self.positions
        first = BlockStage("positions.", tuple(state_name(0, part) for part in positions.parts), positions)
        return [first, *super().stages()]

    def initial_tensors(self) -> dict[str, Tensor]:
        """See :class:`~lram_export.backbones.protocol.Stack`."""
        return self._initial


class Newest(nn.Module):
    """The tokens of the step at the last positions of the window."""

    parts = ()

    def __init__(self, positions: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(positions.clone())

    def forward(self, x: Tensor, first: Tensor, present: Tensor) -> tuple[Tensor]:
        """(B, T, hidden) -> the same."""
        return (x + self.weight,)


class Window(nn.Module):
    """The tokens of the step behind those of the steps before."""

    parts = ("tokens",)

    def __init__(self, positions: Tensor, start: Tensor, no_reward: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(positions.clone())
        self.register_buffer("start", start)
        self.register_buffer("no_reward", no_reward.clone())
        self.start: Tensor
        self.no_reward: Tensor

    def forward(self, x: Tensor, first: Tensor, present: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The step's tokens (B, T, hidden); all of the window, (B, 3 W - 1, hidden), and the next state."""
        tokens = torch.where(first[:, None, None], self.start, tokens)
        # before an episode's first step there is the padding's reward
        reward = torch.where(first[:, None, None], self.no_reward, x[:, :1])
        window = torch.cat([tokens, reward, x[:, 1:]], dim=1)
        return window + self.weight, window[:, STEP_TOKENS:]


class Attention(nn.Module):
    """The projections of a block's attention, and its products."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads: int = attention.num_heads
        self.c_attn, self.c_proj = attention.c_attn, attention.c_proj
        self.scale = (self.c_attn.in_features // self.num_heads) ** -0.5

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, hidden) -> queries, already scaled, keys, values, (B, heads, T, width) each."""
        heads = self.c_attn(x).view(*x.shape[:2], 3 * self.num_heads, -1).transpose(1, 2)
        query, key, value = heads.split(self.num_heads, dim=1)
        return query * self.scale, key, value

    def merge(self, seen: Tensor) -> Tensor:
        """(B, heads, T, width) -> (B, T, hidden), projected."""
        merged: Tensor = self.c_proj(seen.transpose(1, 2).flatten(2))
        return merged


class FeedForward(nn.Module):
    """Two layers with an exact GELU between them."""

    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.c_fc, self.c_proj = layers.c_fc, layers.c_proj

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden) -> the same."""
        return self.c_proj(F.gelu(self.c_fc(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """The layers of a block."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.ln_1, self.attn = block.ln_1, Attention(block.attn)
        self.ln_2, self.mlp = block.ln_2, FeedForward(block.mlp)

    def add(self, x: Tensor, seen: Tensor) -> Tensor:
        """Tokens (B, T, hidden) after what they have seen, (B, heads, T, width), and the feed-forward layers."""
        x = x + self.attn.merge(seen)
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class WindowBlock(Block):
    """A block over the whole window."""

    parts = ()

    def __init__(self, block: Any, tokens: int) -> None:
        super().__init__(block)
        self.register_buffer("later", _later(tokens, block.ln_1.weight))
        self.later: Tensor

    def forward(self, x: Tensor, first: Tensor, present: Tensor) -> tuple[Tensor]:
        """(B, tokens, hidden) -> the same."""
        query, key, value = self.attn.project(self.ln_1(x))
        scores = query @ key.transpose(2, 3) + self.later
        return (self.add(x, torch.softmax(scores, dim=-1) @ value),)


class LastWindowBlock(Block):
    """The last block, of which the head reads the last token."""

    parts = ()

    def forward(self, x: Tensor, first: Tensor, present: Tensor) -> tuple[Tensor]:
        """(B, tokens, hidden) -> (B, 1, hidden)."""
        query, key, value = self.attn.project(self.ln_1(x))
        scores = query[:, :, -1:] @ key.transpose(2, 3)
        return (self.add(x[:, -1:], torch.softmax(scores, dim=-1) @ value),)


class CachedBlock(Block):
    """A block over the tokens of the step, behind a ring of the keys and values of former steps."""

    parts = ("key", "value", "index")

    def __init__(self, block: Any, key: Tensor, value: Tensor) -> None:
        super().__init__(block)
        self.steps = key.shape[1] // STEP_TOKENS
        self.register_buffer("key", key)
        self.register_buffer("value", value)
        self.register_buffer("places", torch.arange(self.steps, dtype=key.dtype))
        self.register_buffer("later", _later(STEP_TOKENS, key))
        self.key: Tensor
        self.value: Tensor
        self.places: Tensor
        self.later: Tensor

    def forward(
        self, x: Tensor, first: Tensor, present: Tensor, key: Tensor, value: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The step's tokens (B, T, hidden) and the block's state in; the same out."""
        rows = first[:, None, None, None]
        key, value = torch.where(rows, self.key, key), torch.where(rows, self.value, value)
        index = torch.where(first, 0.0, index)
        query, new_key, new_value = self.attn.project(self.ln_1(x))
        # the tokens of a step see one another in both directions, but for an episode's first step
        own = query @ new_key.transpose(2, 3) + torch.where(rows, self.later, 0.0)
        weights = torch.softmax(torch.cat([query @ key.transpose(2, 3), own], dim=-1), dim=-1)
        of_past, of_own = weights.split([key.shape[2], STEP_TOKENS], dim=-1)
        oldest = self.places == index[:, None]
        following = index + 1
        return (
            self.add(x, of_past @ value + of_own @ new_value),
            self._replaced(key, oldest, new_key),
            self._replaced(value, oldest, new_value),
            torch.where(following == self.steps, 0.0, following),
        )

    def _replaced(self, ring: Tensor, oldest: Tensor, new: Tensor) -> Tensor:
        """A ring (B, heads, tokens, width) with new tokens in place of the step that ``oldest`` (B, steps) shows."""
        by_step = ring.unflatten(2, (self.steps, STEP_TOKENS))
        return torch.where(oldest[:, None, :, None, None], new[:, :, None], by_step).flatten(2, 3)


def _later(tokens: int, like: Tensor) -> Tensor:
    """What is added to scores (tokens, tokens) so that no token sees a later one."""
    return torch.full((tokens, tokens), NEVER, dtype=like.dtype).triu(1)
