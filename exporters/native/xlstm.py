"""xLSTM blocks in the order in which `kernels/native/src/backbones/xlstm` reads them."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.backbones.xlstm.config import FFN_ACTIVATIONS
from lram_export.backbones.xlstm.fused import folded_gates, query_key_value
from lram_export.backbones.xlstm.step import SLSTMBlock
from lram_export.exporters.native.matrices import Matrices, column_slices, rows
from lram_export.spec.precision import GROUP
from lram_export.spec.tensors import array
from lram_export.spec.tokens import TokenLayout
from lram_export.targets.native.format import FIRST_BLOCK_ROLE, BlockEntry, Tensor, plain

MLSTM, SLSTM = 1, 2
"""The kinds of blocks."""
FFN_SLICES = 4
"""The feed-forward is divided among threads in slices; each is a whole number of int4 groups."""


class Role(IntEnum):
    """What a tensor of a block is."""

    NORM = FIRST_BLOCK_ROLE
    CONV_WEIGHT = 33
    CONV_BIAS = 34
    HEAD_NORM = 35
    UP = 36
    QUERY_KEY_VALUE = 37
    GATE_WEIGHT = 38
    GATE_BIAS = 39
    SKIP = 40
    DOWN = 41
    FROM_CONV = 42
    FROM_INPUT = 43
    RECURRENT = 44
    GATE_BIASES = 45
    FFN_NORM = 46
    FFN_UP = 47
    FFN_DOWN = 48


TOKENS, SKIPPED = 3, 1
"""The kernels hold the tokens of a step in registers, so their number is compiled in."""


def unsupported(config: Any, tokens: TokenLayout) -> str | None:
    """The first size that the kernels do not compute, what they expect, and what it is; None: they compute all."""
    if (len(tokens), tokens.skipped) != (TOKENS, SKIPPED):
        return (
            f"tokens: expected {TOKENS} per step, {SKIPPED} of them skipped at the start of an episode, got "
            f"{len(tokens)} and {tokens.skipped}"
        )
    widths = {"hidden_size": config.hidden_size, "head width": config.head_dim}
    for name, width in widths.items():
        if width % 16:
            return f"{name}: expected a multiple of 16, got {width}"
    if config.qkv_block_size not in (1, 2, 4):
        return f"qkv_block_size: expected 1, 2 or 4, got {config.qkv_block_size}"
    if not 2 <= config.conv_kernel_size <= 16:
        return f"conv_kernel_size: expected 2 to 16, got {config.conv_kernel_size}"
    return None


def pack(number: int, block: Any, config: Any, matrices: Matrices) -> tuple[BlockEntry, Iterator[Tensor]]:
    """A block of the step graph: its entry, and its tensors in the order in which a step reads them."""
    epsilons = (block.norm.eps, block.out_norm.eps)
    if not isinstance(block, SLSTMBlock):
        entry = BlockEntry(MLSTM, (config.num_heads, config.inner_size, config.conv_kernel_size), epsilons)
        return entry, _mlstm(number, block, config, matrices)
    activation = FFN_ACTIVATIONS.index(config.ffn_activation)
    slices = (FFN_SLICES, _slice_width(config.ffn_size))
    entry = BlockEntry(SLSTM, (config.slstm_num_heads, config.conv_kernel_size, *slices, activation), epsilons)
    return entry, _slstm(number, block, config, matrices)


def _mlstm(number: int, block: Any, config: Any, matrices: Matrices) -> Iterator[Tensor]:
    heads, width, inner = config.num_heads, config.head_dim, config.inner_size
    yield plain(Role.NORM, number, array(block.norm.weight))
    name = f"blocks.{number}.proj_up"
    up = matrices.linear(name)
    starts = [part + head * width for head in range(heads) for part in (0, inner)]
    yield matrices.tiled(Role.UP, number, [rows(up, start, width) for start in starts], name)
    yield plain(Role.CONV_WEIGHT, number, np.stack([array(tap) for tap in block.conv.taps]))
    yield plain(Role.CONV_BIAS, number, array(block.conv.bias))
    yield plain(Role.QUERY_KEY_VALUE, number, query_key_value(block))
    yield plain(Role.GATE_WEIGHT, number, folded_gates(block, heads))
    yield plain(Role.GATE_BIAS, number, array(block.gates.bias))
    yield plain(Role.HEAD_NORM, number, array(block.out_norm.weight))
    yield plain(Role.SKIP, number, array(block.skip))
    name = f"blocks.{number}.proj_down"
    yield matrices.tiled(Role.DOWN, number, column_slices(matrices.linear(name), width, heads), name)


def _slstm(number: int, block: Any, config: Any, matrices: Matrices) -> Iterator[Tensor]:
    head = config.hidden_size // config.slstm_num_heads
    yield plain(Role.NORM, number, array(block.norm.weight))
    yield plain(Role.CONV_WEIGHT, number, np.stack([_spread_heads(array(tap), head) for tap in block.conv.taps]))
    yield plain(Role.CONV_BIAS, number, _spread_heads(array(block.conv.bias), head))
    for role, weight in (
        (Role.FROM_CONV, block.from_conv),
        (Role.FROM_INPUT, block.from_input),
        (Role.RECURRENT, block.recurrent),
    ):
        yield matrices.tiled(role, number, _projection(weight, head))
    yield plain(Role.GATE_BIASES, number, _spread_heads(array(block.bias), head))
    yield plain(Role.HEAD_NORM, number, array(block.out_norm.weight))
    yield plain(Role.FFN_NORM, number, array(block.ffn_norm.weight))
    size, width = config.ffn_size, _slice_width(config.ffn_size)
    name = f"blocks.{number}.ffn_up"
    up = matrices.linear(name)
    parts = [rows(up, start, size) for start in (0, size)]
    slices = [rows(part, i * width, width) for i in range(FFN_SLICES) for part in parts]
    yield matrices.tiled(Role.FFN_UP, number, slices, name)
    name = f"blocks.{number}.ffn_down"
    yield matrices.tiled(Role.FFN_DOWN, number, column_slices(matrices.linear(name), width, FFN_SLICES), name)


def _slice_width(ffn_size: int) -> int:
    """Columns of a slice of the feed-forward."""
    return -(-ffn_size // (FFN_SLICES * GROUP)) * GROUP


def _room(width: int) -> int:
    """Channels that kernels compute for an sLSTM head of some width: the next multiple of 16."""
    return -(-width // 16) * 16


def _spread_heads(values: NDArray[Any], width: int) -> NDArray[np.float32]:
    """Heads of ``width`` channels side by side in the last axis, each filled up with zeros to `_room`."""
    heads = values.reshape(*values.shape[:-1], -1, width)
    padded = np.pad(heads, [(0, 0)] * (heads.ndim - 1) + [(0, _room(width) - width)])
    spread: NDArray[np.float32] = padded.reshape(*values.shape[:-1], -1)
    return spread


def _projection(weight: Any, width: int) -> list[NDArray[np.float32]]:
    """Gates of an sLSTM block (heads, in, gates * width) -> per head (gates * room, room), see `_room`."""
    by_output = _spread_heads(array(weight), width).transpose(0, 2, 1)
    return list(_spread_heads(by_output, width))
