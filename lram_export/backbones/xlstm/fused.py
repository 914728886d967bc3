"""Matrices of xLSTM blocks in the order in which fused kernels read them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.spec.tensors import Floats, array


def diagonal_fours(packed: Any) -> Floats:
    """Blocks (n, 4, 4), indexed (block, in, out), out of the graph's packed diagonal blocks (count, size, size)."""
    blocks = array(packed)
    count, size, _ = blocks.shape
    if size < 4:  # blocks of 1 or 2 that the graph could not pack
        group = 4 // size
        fours = np.zeros((count // group, 4, 4), np.float32)
        for i in range(group):
            inside = slice(i * size, (i + 1) * size)
            fours[:, inside, inside] = blocks[i::group]
        return fours
    split = blocks.reshape(count, size // 4, 4, size // 4, 4)
    diagonal = np.arange(size // 4)
    return split[:, diagonal, :, diagonal, :].transpose(1, 0, 2, 3).reshape(-1, 4, 4)


def projections(block: Any) -> tuple[Floats, Floats, Floats]:
    """q, k and v of an mLSTM block as :func:`diagonal_fours`."""
    q, k, v = (diagonal_fours(projection.weight) for projection in (block.q_proj, block.k_proj, block.v_proj))
    return q, k, v


def query_key_value(block: Any) -> Floats:
    """q, k and v by input, (channels / 16, 3, 4, 16); k is scaled by 1 / sqrt(head width)."""
    q, k, v = projections(block)
    scaled = k * np.float32(1 / math.sqrt(block.width))
    by_input = [fours.reshape(-1, 4, 4, 4).transpose(0, 2, 1, 3).reshape(-1, 4, 16) for fours in (q, scaled, v)]
    return np.stack(by_input, axis=1)


def folded_gates(block: Any, parts: int) -> Floats:
    """Gates as functions of the convolved input and of the input: (parts, gates, 2, channels / parts).

    The gates read q, k and v, which are linear in those two.
    """
    q, k, v = projections(block)
    weight = array(block.gates.weight).astype(np.float64)
    gates = len(weight)
    of_q, of_k, of_v = (part.reshape(gates, -1, 4) for part in np.split(weight, 3, axis=1))

    def through(gate: NDArray[np.float64], projection: Floats) -> NDArray[np.float64]:
        folded: NDArray[np.float64] = np.einsum("gbo,bio->gbi", gate, projection.astype(np.float64))
        return folded.reshape(gates, -1)

    folded = np.stack([through(of_q, q) + through(of_k, k), through(of_v, v)], axis=1)  # (gates, 2, inner)
    return folded.reshape(gates, 2, parts, -1).transpose(2, 0, 1, 3).astype(np.float32)
