"""Matrices of xLSTM blocks in the order in which fused kernels read them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.spec.tensors import Floats, array

PART_CHANNELS = 128
"""Channels of an mLSTM block that one thread convolves and projects at a time, if its size has such a divisor."""


def fused_block_size(size: int, channels: int) -> int:
    """Width of the q, k and v blocks that kernels compute: blocks of 1 and 2 are taken for 4 where those fit."""
    return 4 if size in (1, 2) and channels % 4 == 0 else size


def channel_parts(inner: int, size: int) -> int:
    """Into how many equal parts the channels of an mLSTM block are divided; a part holds whole blocks of ``size``.

    Parts are multiples of 16 channels wide where that is possible.
    """
    whole = [width for width in range(size, inner + 1, size) if inner % width == 0]
    small = [width for width in whole if width <= PART_CHANNELS]
    width = max([width for width in small if width % 16 == 0] or [width for width in small if width >= 16] or [0])
    return inner // (width or min(width for width in whole if width > PART_CHANNELS or width == inner))


def diagonal_blocks(packed: Any, size: int) -> Floats:
    """Blocks (n, size, size), indexed (block, in, out), of the graph's diagonal blocks (count, width, width).

    The graph packs as many small blocks into one as divide their number, so that ``size`` divides ``width`` or, where
    it asks for blocks that hold several of the model's, may be a multiple of it or none: the matrix is the same.
    """
    blocks = array(packed)
    count, width, _ = blocks.shape
    if width % size:
        common = math.gcd(width, size)
        small, together = diagonal_blocks(packed, common), size // common
        merged = np.zeros((len(small) // together, size, size), np.float32)
        for i in range(together):
            inside = slice(i * common, (i + 1) * common)
            merged[:, inside, inside] = small[i::together]
        return merged
    split = blocks.reshape(count, width // size, size, width // size, size)
    diagonal = np.arange(width // size)
    return split[:, diagonal, :, diagonal, :].transpose(1, 0, 2, 3).reshape(-1, size, size)


def projections(block: Any, size: int = 4) -> tuple[Floats, Floats, Floats]:
    """q, k and v of an mLSTM block as :func:`diagonal_blocks`."""
    q, k, v = (diagonal_blocks(projection.weight, size) for projection in (block.q_proj, block.k_proj, block.v_proj))
    return q, k, v


def query_key_value(block: Any, size: int = 4) -> Floats:
    """q, k and v by input, (channels / 16, 3, size, 16), the last 16 channels filled up with zeros.

    k is scaled by 1 / sqrt(head width).
    """
    q, k, v = projections(block, size)
    scaled = k * np.float32(1 / math.sqrt(block.width))

    def by_input(blocks: Floats) -> Floats:
        outputs = blocks.transpose(1, 0, 2).reshape(size, -1)  # (in, channels)
        padded = np.pad(outputs, ((0, 0), (0, -outputs.shape[1] % 16)))
        return padded.reshape(size, -1, 16).transpose(1, 0, 2)

    return np.stack([by_input(blocks) for blocks in (q, scaled, v)], axis=1)


def folded_gates(block: Any, parts: int, size: int = 4) -> Floats:
    """Gates as functions of the convolved input and of the input: (parts, gates, 2, channels / parts).

    The gates read q, k and v, which are linear in those two.
    """
    q, k, v = projections(block, size)
    weight = array(block.gates.weight).astype(np.float64)
    gates = len(weight)
    of_q, of_k, of_v = (part.reshape(gates, -1, size) for part in np.split(weight, 3, axis=1))

    def through(gate: NDArray[np.float64], projection: Floats) -> NDArray[np.float64]:
        folded: NDArray[np.float64] = np.einsum("gbo,bio->gbi", gate, projection.astype(np.float64))
        return folded.reshape(gates, -1)

    folded = np.stack([through(of_q, q) + through(of_k, k), through(of_v, v)], axis=1)  # (gates, 2, inner)
    return folded.reshape(gates, 2, parts, -1).transpose(2, 0, 1, 3).astype(np.float32)
