"""xLSTM blocks in the order in which `kernels/native/src/backbones/xlstm` reads them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.backbones.xlstm.config import FFN_ACTIVATIONS
from lram_export.backbones.xlstm.fused import folded_gates, projections
from lram_export.backbones.xlstm.step import SLSTMBlock
from lram_export.exporters.native.matrices import Matrices, column_slices, roomy, rows, slice_width
from lram_export.spec.tensors import array
from lram_export.targets.native.format import FIRST_BLOCK_ROLE, BlockEntry, Tensor, plain, room_of, spread

MLSTM, SLSTM = 1, 2
"""The kinds of blocks."""
FFN_SLICES = 4
"""The feed-forward is divided among threads in so many slices."""


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


def pack(number: int, block: Any, config: Any, matrices: Matrices) -> tuple[BlockEntry, Iterator[Tensor]]:
    """A block of the step graph: its entry, and its tensors in the order in which a step reads them."""
    epsilons = (block.norm.eps, block.out_norm.eps)
    if not isinstance(block, SLSTMBlock):
        sizes = (config.num_heads, config.head_dim, config.conv_kernel_size, _any_block(config))
        entry = BlockEntry(MLSTM, sizes, epsilons)
        return entry, _mlstm(number, block, config, matrices)
    activation = FFN_ACTIVATIONS.index(config.ffn_activation)
    slices = (FFN_SLICES, _slice_width(number, config, matrices))
    entry = BlockEntry(SLSTM, (config.slstm_num_heads, config.conv_kernel_size, *slices, activation), epsilons)
    return entry, _slstm(number, block, config, matrices)


def _mlstm(number: int, block: Any, config: Any, matrices: Matrices) -> Iterator[Tensor]:
    heads, width, inner = config.num_heads, config.head_dim, config.inner_size
    yield plain(Role.NORM, number, spread(array(block.norm.weight)))
    name = f"blocks.{number}.proj_up"
    up = roomy(matrices.linear(name))
    starts = [part + head * width for head in range(heads) for part in (0, inner)]
    yield matrices.tiled(Role.UP, number, [rows(up, start, width) for start in starts], name)
    yield plain(Role.CONV_WEIGHT, number, np.stack([spread(array(tap), width) for tap in block.conv.taps]))
    yield plain(Role.CONV_BIAS, number, spread(array(block.conv.bias), width))
    yield plain(Role.QUERY_KEY_VALUE, number, _query_key_value(block, config))
    yield plain(Role.GATE_WEIGHT, number, spread(folded_gates(block, heads, config.qkv_block_size)))
    yield plain(Role.GATE_BIAS, number, array(block.gates.bias))
    yield plain(Role.HEAD_NORM, number, spread(array(block.out_norm.weight), width))
    yield plain(Role.SKIP, number, spread(array(block.skip), width))
    name = f"blocks.{number}.proj_down"
    yield matrices.tiled(Role.DOWN, number, column_slices(matrices.linear(name), width, heads), name)


def _any_block(config: Any) -> int:
    """Width of the blocks of q, k and v; 0 where the fused kernel takes them: 1, 2 or 4 wide, ending with a head."""
    size = config.qkv_block_size
    return 0 if size in (1, 2, 4) and config.head_dim % size == 0 else size


def _query_key_value(block: Any, config: Any) -> NDArray[np.float32]:
    """q, k and v, k scaled by 1 / sqrt(head width).

    As blocks of 4 for the fused kernel: (heads * room / 16, q/k/v, in, 16 outputs), else (q/k/v, blocks, in, out).
    """
    q, k, v = projections(block, config.qkv_block_size)
    scaled = np.stack([q, k * np.float32(1 / math.sqrt(block.width)), v])  # (3, blocks, in, out)
    if _any_block(config):
        return scaled
    size = config.qkv_block_size
    by_head = scaled.reshape(3, config.num_heads, -1, size, size)
    fours = np.zeros((3, config.num_heads, room_of(config.head_dim) // 4, 4, 4), np.float32)
    together = 4 // size
    for i in range(together):
        inside, part = slice(i * size, (i + 1) * size), by_head[:, :, i::together]
        fours[:, :, : part.shape[2], inside, inside] = part
    by_input = fours.reshape(3, -1, 4, 4, 4).transpose(1, 0, 3, 2, 4)  # (sixteens, q/k/v, in, four, out)
    return by_input.reshape(-1, 3, 4, 16)


def _slstm(number: int, block: Any, config: Any, matrices: Matrices) -> Iterator[Tensor]:
    head = config.hidden_size // config.slstm_num_heads
    yield plain(Role.NORM, number, spread(array(block.norm.weight)))
    yield plain(Role.CONV_WEIGHT, number, np.stack([spread(array(tap), head) for tap in block.conv.taps]))
    yield plain(Role.CONV_BIAS, number, spread(array(block.conv.bias), head))
    for role, weight in (
        (Role.FROM_CONV, block.from_conv),
        (Role.FROM_INPUT, block.from_input),
        (Role.RECURRENT, block.recurrent),
    ):
        yield matrices.tiled(role, number, _projection(weight, head))
    yield plain(Role.GATE_BIASES, number, spread(array(block.bias), head))
    yield plain(Role.HEAD_NORM, number, array(block.out_norm.weight))
    yield plain(Role.FFN_NORM, number, spread(array(block.ffn_norm.weight)))
    size, width = config.ffn_size, _slice_width(number, config, matrices)
    name = f"blocks.{number}.ffn_up"
    up = roomy(matrices.linear(name))
    parts = [rows(up, start, size) for start in (0, size)]
    slices = [rows(part, i * width, width) for i in range(FFN_SLICES) for part in parts]
    yield matrices.tiled(Role.FFN_UP, number, slices, name)
    name = f"blocks.{number}.ffn_down"
    yield matrices.tiled(Role.FFN_DOWN, number, column_slices(matrices.linear(name), width, FFN_SLICES), name)


def _slice_width(number: int, config: Any, matrices: Matrices) -> int:
    """Columns of a slice of the feed-forward."""
    return slice_width(config.ffn_size, FFN_SLICES, [matrices.linear(f"blocks.{number}.ffn_down")])


def _projection(weight: Any, width: int) -> list[NDArray[np.float32]]:
    """Gates of an sLSTM block (heads, in, gates * width) -> per head (gates * room, room), see `room_of`."""
    by_output = spread(array(weight), width).transpose(0, 2, 1)
    return list(spread(by_output, width))
