"""Sizes, weights and states of Mamba (arXiv 2312.00752). Free of torch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from lram_export.backbones.protocol import Draw, WeightSpec
from lram_export.backbones.reading import read_sizes
from lram_export.spec.json_fields import Fields, whole_number
from lram_export.spec.tensors import StateSpec, state_name

SIZES = {
    "hidden_size": (1, 1 << 15),
    "num_blocks": (1, 256),
    "inner_size": (1, 1 << 16),
    "state_size": (1, 1 << 10),
    "dt_rank": (1, 1 << 15),
    "conv_kernel_size": (2, 64),
}
"""Smallest and largest value of each size."""
FLAGS = ("bias", "conv_bias", "rms_norm")
SMALLEST_EPSILON = 1e-12

PREFIX = "encoder."
"""What the original code's names of a backbone's weights begin with."""
NEAR_ONE, NEAR_ZERO = Draw(0.1, mean=1.0), Draw(0.1)


@dataclass(frozen=True)
class MambaConfig:
    """Sizes of a Mamba, in brackets what the training code calls them.

    Attributes:
        hidden_size: width of a token (`d_model`).
        num_blocks: how many blocks there are (`n_layer`).
        inner_size: width of a block (`d_inner`, 2 * hidden_size in the published models).
        state_size: numbers that each of the inner channels remembers (`d_state`).
        dt_rank: inputs of the projection to step sizes.
        conv_kernel_size: inputs of the convolution (`d_conv`).
        bias: in_proj and out_proj have one.
        conv_bias: the convolution has one.
        rms_norm: norms are RMS norms, otherwise layer norms with a bias.
        norm_epsilon: what norms add to the variance.
    """

    kind: ClassVar[str] = "mamba"

    hidden_size: int
    num_blocks: int
    inner_size: int
    state_size: int
    dt_rank: int
    conv_kernel_size: int = 4
    bias: bool = False
    conv_bias: bool = True
    rms_norm: bool = True
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        """Check every size; raises ValueError naming the field."""
        for name, (low, high) in SIZES.items():
            whole_number(getattr(self, name), name, low, high)
        fields = Fields(dataclasses.asdict(self))
        for name in FLAGS:
            fields.flag(name)
        fields.number("norm_epsilon", SMALLEST_EPSILON, 1.0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of :func:`read`."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    def facts(self) -> list[tuple[str, str]]:
        """The sizes in words."""
        return [
            ("hidden size", str(self.hidden_size)),
            ("blocks", str(self.num_blocks)),
            ("memory of a block", f"{self.inner_size} channels of {self.state_size} numbers"),
        ]

    def weights(self) -> list[WeightSpec]:
        """All weights, in the original code's names.

        A precision applies to the four projections of a block. In float32 x_proj and dt_proj alone would be a
        sixth of an int8 model; as codes they add less than a hundredth to its error.
        """
        found = self._norm(f"{PREFIX}norm_f")
        for block in range(self.num_blocks):
            found += self._block(block)
        return found

    def _norm(self, name: str) -> list[WeightSpec]:
        found = [WeightSpec(f"{name}.weight", (self.hidden_size,), NEAR_ONE)]
        return found if self.rms_norm else [*found, WeightSpec(f"{name}.bias", (self.hidden_size,), NEAR_ZERO)]

    def _block(self, block: int) -> list[WeightSpec]:
        mixer = f"{PREFIX}layers.{block}.mixer"
        hidden, inner, size, rank = self.hidden_size, self.inner_size, self.state_size, self.dt_rank
        kernel = self.conv_kernel_size

        def drives(name: str, outputs: int, inputs: int) -> WeightSpec:
            matrix, draw = f"blocks.{block}.{name}", _keeps(inputs)
            return WeightSpec(f"{mixer}.{name}.weight", (outputs, inputs), draw, matrix, drives_state=True)

        adds = Draw(1 / math.sqrt(inner * self.num_blocks))  # all blocks together keep the variance
        found = [
            *self._norm(f"{PREFIX}layers.{block}.norm"),
            # A from about 2 to 9, as the original begins with 1 to 16
            WeightSpec(f"{mixer}.A_log", (inner, size), Draw(0.8, mean=1.4)),
            WeightSpec(f"{mixer}.D", (inner,), NEAR_ONE),
            drives("in_proj", 2 * inner, hidden),
            WeightSpec(f"{mixer}.conv1d.weight", (inner, 1, kernel), _keeps(kernel)),
            drives("x_proj", rank + 2 * size, inner),
            drives("dt_proj", inner, rank),
            # step sizes around 0.01, which remember for tens to hundreds of tokens
            WeightSpec(f"{mixer}.dt_proj.bias", (inner,), Draw(1.2, mean=-4.6)),
            WeightSpec(f"{mixer}.out_proj.weight", (hidden, inner), adds, f"blocks.{block}.out_proj"),
        ]
        if self.conv_bias:
            found.append(WeightSpec(f"{mixer}.conv1d.bias", (inner,), NEAR_ZERO))
        if self.bias:
            found.append(WeightSpec(f"{mixer}.in_proj.bias", (2 * inner,), NEAR_ZERO))
            found.append(WeightSpec(f"{mixer}.out_proj.bias", (hidden,), NEAR_ZERO))
        return found

    def states(self, batch_size: int, tokens: int) -> list[StateSpec]:
        """State of every block, channels last: ``conv`` holds the last inputs of the convolution, oldest first, ``ssm``
        what the state space remembers."""
        found: list[StateSpec] = []
        for block in range(self.num_blocks):
            for part, role, rows in (
                ("conv", "window", self.conv_kernel_size - 1),
                ("ssm", "hidden", self.state_size),
            ):
                shape = (batch_size, rows, self.inner_size)
                found.append(StateSpec(state_name(block, part), shape, "float32", role=role))
        return found


def _keeps(inputs: int) -> Draw:
    """A matrix that keeps the variance of its inputs."""
    return Draw(1 / math.sqrt(inputs))


def read(fields: Fields) -> MambaConfig:
    """Read what ``to_json`` wrote; raises ValueError naming the field that is wrong."""
    return read_sizes(MambaConfig, fields)


PRESETS: dict[str, tuple[int, int]] = {
    "16m": (512, 8),
    "48m": (768, 12),
    "110m": (1024, 16),
    "206m": (1280, 20),
    "408m": (1536, 28),
}
"""Published sizes (arXiv 2410.22391): (hidden size, blocks)."""


def dt_rank_of(hidden_size: int) -> int:
    """The original's choice, `auto`."""
    return math.ceil(hidden_size / 16)


def preset_sizes(preset: str) -> MambaConfig:
    """A published size, a key of :data:`PRESETS`."""
    hidden_size, num_blocks = PRESETS[preset]
    return MambaConfig(
        hidden_size=hidden_size,
        num_blocks=num_blocks,
        inner_size=2 * hidden_size,
        state_size=16,
        dt_rank=dt_rank_of(hidden_size),
    )
