"""Sizes, weights and states of a Decision Transformer (arXiv 2106.01345). Free of torch.

It sees no more than the last ``context_length`` steps, in one of two ways, which are two different policies:

``window``  what training evaluates: the tokens of the last steps, before an episode's first step those of padding, go
            through all blocks anew at every step, at the positions 0, 1, 2, ... of the window. The state is the tokens.
``cache``   the training code's inference cache: only the tokens of the newest step are computed, always at the last
            positions, and see the keys and values that former steps left. Rewards are not seen.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from lram_export.backbones.protocol import Draw, WeightSpec
from lram_export.backbones.reading import read_sizes
from lram_export.spec.json_fields import Fields, whole_number
from lram_export.spec.tensors import StateSpec, state_name
from lram_export.spec.tokens import TokenLayout

SIZES = {
    "hidden_size": (1, 1 << 15),
    "num_blocks": (1, 256),
    "num_heads": (1, 1 << 10),
    "ffn_size": (1, 1 << 17),
    "context_length": (2, 1 << 10),
}
"""Smallest and largest value of each size."""
SMALLEST_EPSILON = 1e-12
WINDOW, CACHE = CONTEXTS = ("window", "cache")
"""The ways to act, the one that was trained first."""
STEP_TOKENS = 3
"""Tokens of a step."""
PUBLISHED_CONTEXT_LENGTH, PUBLISHED_HEAD_WIDTH = 50, 64

PREFIX = "encoder."
"""What the original code's names of a backbone's weights begin with."""
POSITIONS = f"{PREFIX}wpe.weight"
NEAR_ONE, NEAR_ZERO = Draw(0.1, mean=1.0), Draw(0.1)


@dataclass(frozen=True)
class DecisionTransformerConfig:
    """Sizes of a Decision Transformer, in brackets what the training code calls them.

    Attributes:
        hidden_size: width of a token.
        num_blocks: how many blocks there are (`n_layer`).
        num_heads: of the attention (`n_head`); divides hidden_size.
        ffn_size: width of the feed-forward layers (`n_inner`, 4 * hidden_size in the published models).
        context_length: steps that are seen, the newest included (`eval_context_len`).
        context: `window` or `cache`.
        norm_epsilon: what layer norms add to the variance (`layer_norm_epsilon`).
    """

    kind: ClassVar[str] = "decision_transformer"

    hidden_size: int
    num_blocks: int
    num_heads: int
    ffn_size: int
    context_length: int
    context: str = WINDOW
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        """Check every size; raises ValueError naming the field."""
        for name, (low, high) in SIZES.items():
            whole_number(getattr(self, name), name, low, high)
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of hidden_size {self.hidden_size}, got {self.num_heads}")
        fields = Fields(dataclasses.asdict(self))
        fields.text("context", choices=CONTEXTS)
        fields.number("norm_epsilon", SMALLEST_EPSILON, 1.0)

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads

    @property
    def window_tokens(self) -> int:
        """Tokens of the window up to the one that is read: the reward of the newest step would come after it."""
        return STEP_TOKENS * self.context_length - 1

    @property
    def cached_tokens(self) -> int:
        """Tokens whose keys and values are kept."""
        return STEP_TOKENS * (self.context_length - 1)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of :func:`read`."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    def facts(self) -> list[tuple[str, str]]:
        """The sizes in words."""
        return [
            ("hidden size", str(self.hidden_size)),
            ("blocks", str(self.num_blocks)),
            ("heads", f"{self.num_heads} of {self.head_size}"),
            ("context", f"{self.context} of {self.context_length} steps"),
            ("arithmetic", f"{2e-9 * self.products():.3g} GFLOP per step"),
        ]

    def products(self) -> int:
        """Multiplications of one step of one row: of all matrices, and of queries with keys, weights with values."""
        hidden, ffn = self.hidden_size, self.ffn_size
        matrices = hidden * (4 * hidden + 2 * ffn)
        if self.context == CACHE:
            seen = self.cached_tokens + STEP_TOKENS
            return self.num_blocks * STEP_TOKENS * (matrices + 2 * seen * hidden)
        tokens = self.window_tokens
        whole = tokens * matrices + tokens * (tokens + 1) * hidden
        last = tokens * 2 * hidden * hidden + matrices - 2 * hidden * hidden + 2 * tokens * hidden
        return (self.num_blocks - 1) * whole + last

    def weights(self) -> list[WeightSpec]:
        """All weights, in the original code's names; matrices as (out, in).

        A precision applies to the four matrices of a block.
        """
        found = [WeightSpec(POSITIONS, (STEP_TOKENS * self.context_length, self.hidden_size), NEAR_ZERO)]
        for block in range(self.num_blocks):
            found += self._block(block)
        return [*found, *self._norm(f"{PREFIX}ln_f")]

    def _norm(self, name: str) -> list[WeightSpec]:
        size = (self.hidden_size,)
        return [WeightSpec(f"{name}.weight", size, NEAR_ONE), WeightSpec(f"{name}.bias", size, NEAR_ZERO)]

    def _block(self, block: int) -> list[WeightSpec]:
        prefix, hidden, ffn = f"{PREFIX}h.{block}", self.hidden_size, self.ffn_size

        def matrix(name: str, outputs: int, inputs: int, adds: bool = False) -> list[WeightSpec]:
            # what two layers of every block add keeps the variance
            draw = Draw(1 / math.sqrt(inputs * (2 * self.num_blocks if adds else 1)))
            return [
                WeightSpec(f"{prefix}.{name}.weight", (outputs, inputs), draw, f"blocks.{block}.{name}"),
                WeightSpec(f"{prefix}.{name}.bias", (outputs,), NEAR_ZERO),
            ]

        return [
            *self._norm(f"{prefix}.ln_1"),
            *matrix("attn.c_attn", 3 * hidden, hidden),
            *matrix("attn.c_proj", hidden, hidden, adds=True),
            *self._norm(f"{prefix}.ln_2"),
            *matrix("mlp.c_fc", ffn, hidden),
            *matrix("mlp.c_proj", hidden, ffn, adds=True),
        ]

    def states(self, batch_size: int, tokens: int) -> list[StateSpec]:
        """`window`: the last tokens, oldest first, before positions are added. `cache`: of every block ``key`` and
        ``value`` of the last tokens as a ring, and ``index``, the step of the ring that is replaced next."""
        if self.context == WINDOW:
            shape = (batch_size, self.window_tokens - STEP_TOKENS, self.hidden_size)
            return [StateSpec(state_name(0, "tokens"), shape, "float32", role="window", initial=None)]
        found = []
        ring = (batch_size, self.num_heads, self.cached_tokens, self.head_size)
        for block in range(self.num_blocks):
            found += [
                StateSpec(state_name(block, part), ring, "float32", role=part, initial=None)
                for part in ("key", "value")
            ]
            last = float(self.context_length - 2)
            found.append(StateSpec(state_name(block, "index"), (batch_size,), "float32", last, role="index"))
        return found


def read(fields: Fields) -> DecisionTransformerConfig:
    """Read what ``to_json`` wrote; raises ValueError naming the field that is wrong."""
    return read_sizes(DecisionTransformerConfig, fields)


def in_context(
    config: DecisionTransformerConfig, layout: TokenLayout, context: str
) -> tuple[DecisionTransformerConfig, TokenLayout]:
    """The same policy acting in a way of :data:`CONTEXTS`, and the tokens of a step then, from those of any.

    With the cache a step is observation, return-to-go, and the place of its reward, which is not known yet.
    """
    *before, last = layout.tokens
    if context == CACHE and not last.zero:
        reward, *others = layout.tokens
        unknown = dataclasses.replace(reward, skipped_at_start=False, zero=True)
        layout = dataclasses.replace(layout, tokens=(*others, unknown))
    elif context == WINDOW and last.zero:
        reward = dataclasses.replace(last, skipped_at_start=True, zero=False)
        layout = dataclasses.replace(layout, tokens=(reward, *before))
    return dataclasses.replace(config, context=context), layout


PRESETS: dict[str, tuple[int, int]] = {
    "16m": (512, 4),
    "48m": (768, 6),
    "110m": (1024, 8),
    "206m": (1280, 10),
    "408m": (1536, 14),
}
"""Published sizes (arXiv 2410.22391): (hidden size, blocks)."""


def preset_sizes(preset: str) -> DecisionTransformerConfig:
    """A published size, a key of :data:`PRESETS`."""
    hidden_size, num_blocks = PRESETS[preset]
    return DecisionTransformerConfig(
        hidden_size=hidden_size,
        num_blocks=num_blocks,
        num_heads=hidden_size // PUBLISHED_HEAD_WIDTH,
        ffn_size=4 * hidden_size,
        context_length=PUBLISHED_CONTEXT_LENGTH,
    )
