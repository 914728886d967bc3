"""Sizes, weights and states of xLSTM: mLSTM and sLSTM blocks (arXiv 2405.04517). Free of torch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from lram_export.backbones.protocol import Draw, WeightSpec
from lram_export.backbones.reading import read_sizes
from lram_export.spec.json_fields import Fields, whole_number
from lram_export.spec.tensors import StateSpec, state_name

FFN_ACTIVATIONS = ("gelu", "relu", "relu^2", "sigmoid", "swish", "selu")
"""Activations of the gated feed-forward that a model can have."""

SIZES = {
    "hidden_size": (1, 1 << 15),
    "num_blocks": (1, 256),
    "num_heads": (1, 1 << 10),
    "inner_size": (1, 1 << 16),
    "slstm_num_heads": (1, 1 << 10),
    "ffn_size": (0, 1 << 17),
    "conv_kernel_size": (2, 64),
    "qkv_block_size": (1, 1 << 16),
}
"""Smallest and largest value of each size."""

SLSTM_INITIAL_M = -1e30
"""Initial stabilizer of an sLSTM block: makes the first step take m = i, as the original's branch does."""

PREFIX = "encoder.layers."
"""What the original code's names of a backbone's weights begin with."""
NEAR_ONE, NEAR_ZERO = Draw(0.1, mean=1.0), Draw(0.1)


def round_up(value: float, multiple: int = 64) -> int:
    """Widths as the xlstm package rounds them (`UpProjConfigMixin`): up to a multiple of 64."""
    return int(-(-value // multiple) * multiple)


@dataclass(frozen=True)
class XLSTMConfig:
    """Sizes of an xLSTM stack.

    ``inner_size`` is the width D of an mLSTM block (2 * hidden_size in the published models), so its head width is
    D / num_heads. ``slstm_at`` lists the blocks that are sLSTM blocks; each is followed by a gated feed-forward of
    width ``ffn_size``.
    """

    kind: ClassVar[str] = "xlstm"

    hidden_size: int
    num_blocks: int
    num_heads: int
    inner_size: int
    slstm_at: tuple[int, ...] = ()
    slstm_num_heads: int = 4
    ffn_size: int = 0
    ffn_activation: str = "gelu"
    conv_kernel_size: int = 4
    qkv_block_size: int = 4

    def __post_init__(self) -> None:
        """Check every size, and that they fit together; raises ValueError naming the field."""
        for name, (low, high) in SIZES.items():
            whole_number(getattr(self, name), name, low, high)
        if self.ffn_activation not in FFN_ACTIVATIONS:
            raise ValueError(
                f"ffn_activation: expected one of {', '.join(FFN_ACTIVATIONS)}, got {self.ffn_activation!r}"
            )
        if self.inner_size % self.num_heads:
            raise ValueError(f"num_heads: {self.num_heads} does not divide the inner size {self.inner_size}")
        if self.inner_size % self.qkv_block_size:
            raise ValueError(f"qkv_block_size: {self.qkv_block_size} does not divide the inner size {self.inner_size}")
        for place, block in enumerate(self.slstm_at):
            whole_number(block, f"slstm_at[{place}]", -SIZES["num_blocks"][1], SIZES["num_blocks"][1])
        outside = [i for i in self.slstm_at if not 0 <= i < self.num_blocks]
        if outside or len(set(self.slstm_at)) != len(self.slstm_at):
            raise ValueError(
                f"slstm_at: expected distinct blocks in 0..{self.num_blocks - 1}, got {list(self.slstm_at)}"
            )
        if self.slstm_at and self.hidden_size % self.slstm_num_heads:
            raise ValueError(
                f"slstm_num_heads: {self.slstm_num_heads} does not divide the hidden size {self.hidden_size}"
            )
        if self.slstm_at and self.ffn_size < 1:
            raise ValueError("ffn_size: expected a positive number where there are sLSTM blocks")

    @property
    def head_dim(self) -> int:
        """Width of one mLSTM head: C is head_dim x head_dim."""
        return self.inner_size // self.num_heads

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of :func:`read`."""
        sizes = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        return {"kind": self.kind, **sizes}

    def facts(self) -> list[tuple[str, str]]:
        """The sizes in words."""
        blocks = f"{self.num_blocks} ({self.num_blocks - len(self.slstm_at)} mLSTM, {len(self.slstm_at)} sLSTM"
        blocks += f" at {', '.join(map(str, self.slstm_at))})" if self.slstm_at else ")"
        return [
            ("hidden size", str(self.hidden_size)),
            ("blocks", blocks),
            ("mLSTM heads", f"{self.num_heads} of width {self.head_dim}"),
        ]

    def weights(self) -> list[WeightSpec]:
        """All weights, in the original code's names.

        sLSTM recurrent kernels are in the `vanilla` layout (heads, 4 * head_dim, head_dim), to which
        :mod:`~lram_export.backbones.xlstm.original` converts.
        """
        found = [WeightSpec(f"{PREFIX}post_blocks_norm.weight", (self.hidden_size,), NEAR_ZERO)]
        for block in range(self.num_blocks):
            found += self._slstm(block) if block in self.slstm_at else self._mlstm(block)
        return found

    def _mlstm(self, block: int) -> list[WeightSpec]:
        prefix, layer = f"{PREFIX}blocks.{block}", f"{PREFIX}blocks.{block}.xlstm"
        hidden, inner, size, heads = self.hidden_size, self.inner_size, self.qkv_block_size, self.num_heads
        found = [
            WeightSpec(f"{prefix}.xlstm_norm.weight", (hidden,), NEAR_ZERO),
            WeightSpec(f"{layer}.learnable_skip", (inner,), NEAR_ONE),
            WeightSpec(
                *(f"{layer}.proj_up.weight", (2 * inner, hidden), _keeps(hidden), f"blocks.{block}.proj_up"),
                drives_state=True,
            ),
            WeightSpec(f"{layer}.proj_down.weight", (hidden, inner), self._adds(inner), f"blocks.{block}.proj_down"),
            WeightSpec(f"{layer}.conv1d.conv.weight", (inner, 1, self.conv_kernel_size), _keeps(self.conv_kernel_size)),
            WeightSpec(f"{layer}.conv1d.conv.bias", (inner,), NEAR_ZERO),
            WeightSpec(f"{layer}.mlstm_cell.outnorm.weight", (inner,), NEAR_ZERO),
        ]
        found += [
            WeightSpec(f"{layer}.{projection}.weight", (inner // size, size, size), _keeps(size))
            for projection in ("q_proj", "k_proj", "v_proj")
        ]
        for gate, bias in (("igate", NEAR_ZERO), ("fgate", Draw(0.1, ramp=(0, heads)))):
            found.append(WeightSpec(f"{layer}.mlstm_cell.{gate}.weight", (heads, 3 * inner), _keeps(3 * inner)))
            found.append(WeightSpec(f"{layer}.mlstm_cell.{gate}.bias", (heads,), bias))
        return found

    def _slstm(self, block: int) -> list[WeightSpec]:
        prefix, layer = f"{PREFIX}blocks.{block}", f"{PREFIX}blocks.{block}.xlstm"
        hidden, heads, ffn = self.hidden_size, self.slstm_num_heads, self.ffn_size
        width = hidden // heads
        forget = Draw(0.1, ramp=(hidden, 2 * hidden))  # gates i, f, z, o
        return [
            WeightSpec(f"{prefix}.xlstm_norm.weight", (hidden,), NEAR_ZERO),
            WeightSpec(
                f"{layer}.conv1d.conv.weight", (hidden, 1, self.conv_kernel_size), _keeps(self.conv_kernel_size)
            ),
            WeightSpec(f"{layer}.conv1d.conv.bias", (hidden,), NEAR_ZERO),
            WeightSpec(
                f"{layer}.slstm_cell._recurrent_kernel_", (heads, 4 * width, width), Draw(0.5 / math.sqrt(width))
            ),
            WeightSpec(f"{layer}.slstm_cell._bias_", (4 * hidden,), forget),
            WeightSpec(f"{layer}.group_norm.weight", (hidden,), NEAR_ZERO),
            WeightSpec(f"{prefix}.ffn_norm.weight", (hidden,), NEAR_ZERO),
            WeightSpec(f"{prefix}.ffn.proj_up.weight", (2 * ffn, hidden), _keeps(hidden), f"blocks.{block}.ffn_up"),
            WeightSpec(f"{prefix}.ffn.proj_down.weight", (hidden, ffn), self._adds(ffn), f"blocks.{block}.ffn_down"),
            *(
                WeightSpec(f"{layer}.{gate}.weight", (heads, width, width), _keeps(width))
                for gate in ("igate", "fgate", "zgate", "ogate")
            ),
        ]

    def _adds(self, inputs: int) -> Draw:
        """The end of a residual branch: all of them together keep the variance."""
        return Draw(1 / math.sqrt(inputs * 2 * self.num_blocks))

    def states(self, batch_size: int, tokens: int) -> list[StateSpec]:
        """State of every block: ``conv`` holds the last inputs of the causal convolution, oldest first."""
        found: list[StateSpec] = []
        window = self.conv_kernel_size - 1
        for block in range(self.num_blocks):

            def part(name: str, role: str, *shape: int, initial: float = 0.0, block: int = block) -> StateSpec:
                return StateSpec(state_name(block, name), (batch_size, *shape), "float32", role=role, initial=initial)

            if block in self.slstm_at:
                found += [
                    part("conv", "window", window, self.hidden_size),
                    part("y", "hidden", self.hidden_size),
                    part("c", "cell", self.hidden_size),
                    part("n", "normalizer", self.hidden_size),
                    part("m", "stabilizer", self.hidden_size, initial=SLSTM_INITIAL_M),
                ]
            else:
                heads, width = self.num_heads, self.head_dim
                found += [
                    part("conv", "window", window, self.inner_size),
                    part("C", "matrix", heads, width, width),
                    part("n", "normalizer", heads, width),
                    part("m", "stabilizer", heads),
                ]
        return found


def _keeps(inputs: int) -> Draw:
    """A matrix that keeps the variance of its inputs."""
    return Draw(1 / math.sqrt(inputs))


def read(fields: Fields) -> XLSTMConfig:
    """Read what ``to_json`` wrote; raises ValueError naming the field that is wrong."""
    return read_sizes(XLSTMConfig, fields, slstm_at=tuple(fields.items("slstm_at", SIZES["num_blocks"][1])))


PRESETS: dict[str, tuple[int, int]] = {
    "16m": (512, 8),
    "48m": (768, 12),
    "110m": (1024, 16),
    "206m": (1280, 20),
    "408m": (1536, 28),
}
"""Published sizes (arXiv 2410.22391): (hidden size, blocks)."""


def preset_sizes(preset: str, slstm_at: tuple[int, ...] = ()) -> XLSTMConfig:
    """A published size, a key of :data:`PRESETS`; raises ValueError if ``slstm_at`` names a block that is not there."""
    hidden_size, num_blocks = PRESETS[preset]
    return XLSTMConfig(
        hidden_size=hidden_size,
        num_blocks=num_blocks,
        num_heads=4,
        inner_size=round_up(2 * hidden_size),
        slstm_at=slstm_at,
        ffn_size=round_up(1.3 * hidden_size) if slstm_at else 0,
    )
