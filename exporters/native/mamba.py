"""Mamba blocks in the order in which `kernels/native/src/backbones/mamba` reads them."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.exporters.native.matrices import Matrices, column_slices, roomy, rows, slice_width, stacked
from lram_export.spec.tensors import array
from lram_export.targets.native.format import FIRST_BLOCK_ROLE, BlockEntry, Tensor, plain, room_of, spread

MAMBA = 3
"""The kind of block."""
MOST_SLICES = 8
"""The channels are divided among threads in at most so many slices."""


class Role(IntEnum):
    """What a tensor of a block is."""

    NORM = FIRST_BLOCK_ROLE
    NORM_BIAS = 33
    IN = 34
    IN_BIAS = 35
    CONV_WEIGHT = 36
    CONV_BIAS = 37
    SELECT = 38
    STEP = 39
    STEP_BIAS = 40
    A = 41
    D = 42
    OUT = 43
    OUT_BIAS = 44


def pack(number: int, block: Any, config: Any, matrices: Matrices) -> tuple[BlockEntry, Iterator[Tensor]]:
    """A block of the step graph: its entry, and its tensors in the order in which a step reads them."""
    divided = [matrices.linear(f"blocks.{number}.{name}") for name in ("x_proj", "out_proj")]
    width = slice_width(config.inner_size, MOST_SLICES, divided)
    slices = -(-config.inner_size // width)
    sizes = (config.inner_size, slices, width, config.state_size, config.dt_rank, config.conv_kernel_size)
    entry = BlockEntry(MAMBA, (*sizes, int(config.rms_norm), int(config.bias)), (block.norm.eps,))
    return entry, _tensors(number, block, config, matrices, slices, width)


def _tensors(number: int, block: Any, config: Any, matrices: Matrices, slices: int, width: int) -> Iterator[Tensor]:
    inner, rank, size = config.inner_size, config.dt_rank, config.state_size

    def filled(values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The last axis, of channels, filled up with zeros to whole slices."""
        return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, slices * width - inner)])

    def halves(values: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is of the convolution's input, then of the gate, slice by slice."""
        return filled(values.reshape(2, inner)).reshape(2, slices, width).transpose(1, 0, 2)

    yield plain(Role.NORM, number, spread(array(block.norm.weight)))
    if not config.rms_norm:
        yield plain(Role.NORM_BIAS, number, spread(array(block.norm.bias)))
    name = f"blocks.{number}.in_proj"
    both = roomy(matrices.linear(name))
    parts = [rows(both, start, inner) for start in (0, inner)]
    yield matrices.tiled(Role.IN, number, [rows(p, i * width, width) for i in range(slices) for p in parts], name)
    if config.bias:
        yield plain(Role.IN_BIAS, number, halves(array(block.in_proj.bias)))
    yield plain(Role.CONV_WEIGHT, number, np.stack([filled(array(tap)) for tap in block.conv.taps]))
    bias = np.zeros(inner, np.float32) if block.conv.bias is None else array(block.conv.bias)
    yield plain(Role.CONV_BIAS, number, filled(bias))
    name = f"blocks.{number}.x_proj"
    select = matrices.linear(name)
    starts = ((0, rank), (rank, size), (rank + size, size))
    parts = [rows(rows(select, start, count), 0, room_of(count)) for start, count in starts]
    yield matrices.tiled(Role.SELECT, number, column_slices(stacked(parts), width, slices), name)
    name = f"blocks.{number}.dt_proj"
    step = roomy(matrices.linear(name))
    yield matrices.tiled(Role.STEP, number, [rows(step, i * width, width) for i in range(slices)], name)
    yield plain(Role.STEP_BIAS, number, filled(array(block.dt_proj.bias)))
    yield plain(Role.A, number, filled(array(block.A)))
    yield plain(Role.D, number, filled(array(block.D)))
    name = f"blocks.{number}.out_proj"
    yield matrices.tiled(Role.OUT, number, column_slices(matrices.linear(name), width, slices), name)
    if config.bias:
        yield plain(Role.OUT_BIAS, number, array(block.out_proj.bias))
