"""Weights in the order in which hand-written step kernels read them: what the targets `native` and `tvm` share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.errors import UsageError
from lram_export.precision import GROUP
from lram_export.quantized import QuantizedMatrix

TILE = 32
"""Outputs that are computed together; the last tile of a matrix is filled up with zeros."""

MOST_INT8_COLUMNS = 133_144
"""127 * 127 times so many products of 8-bit codes still fit the 32 bits in which kernels add them up."""

Floats = NDArray[np.float32]


def check_sums(target: str, matrices: Mapping[str, QuantizedMatrix]) -> None:
    """Raise UsageError, naming the matrix, unless the sums of products of 8-bit codes fit 32 bits."""
    for name, matrix in matrices.items():
        if matrix.format == "int8" and matrix.shape[1] > MOST_INT8_COLUMNS:
            raise UsageError(
                f"{target}: {name}: a sum of {matrix.shape[1]} products of 8-bit codes does not fit 32 bits, expected "
                f"at most {MOST_INT8_COLUMNS} columns; use another precision"
            )


def array(tensor: Any) -> Floats:
    """A parameter of the step graph as numpy."""
    values: Floats = tensor.detach().numpy()
    return values


def whole_tiles(rows: int) -> int:
    """Tiles that hold some rows."""
    return -(-rows // TILE)


def tiles(matrix: NDArray[Any]) -> NDArray[Any]:
    """(rows, cols) -> (tiles, 32, cols), rows filled up with zeros."""
    rows, cols = matrix.shape
    padded = np.pad(matrix, ((0, -rows % TILE), (0, 0)))
    return padded.reshape(-1, TILE, cols)


def pad_columns(matrix: NDArray[Any], multiple: int) -> NDArray[Any]:
    """Columns filled up with zeros to a multiple."""
    return np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % multiple)))


def input_major(matrix: NDArray[Any]) -> NDArray[Any]:
    """(rows, cols) -> (tiles, cols, 32): the 32 weights of an input lie side by side."""
    return tiles(matrix).transpose(0, 2, 1)


def int8_quads(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """int8 codes (rows, cols) -> (tiles, cols / 4, 32, 4): four inputs of an output side by side."""
    tiled = tiles(pad_columns(codes, 4))
    return tiled.reshape(len(tiled), TILE, -1, 4).transpose(0, 2, 1, 3)


def int8_offsets(codes: NDArray[np.int8]) -> NDArray[np.int32]:
    """-128 times the sum of each row's codes, (tiles, 32): what activations stored as code + 128 add too much."""
    offsets: NDArray[np.int32] = (-128 * tiles(codes).sum(axis=2, dtype=np.int32)).astype(np.int32)
    return offsets


def int4_octets(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """int4 codes (rows, cols) -> bytes (tiles, groups, 8, 32, 4).

    Low halves belong to inputs 0 to 3 of eight, high halves to 4 to 7; each is code + 8.
    """
    tiled = tiles(pad_columns(codes, GROUP))
    count, groups = len(tiled), tiled.shape[2] // GROUP
    nibbles = (tiled + 8).astype(np.uint8).reshape(count, TILE, groups, GROUP // 8, 2, 4)
    both = nibbles[:, :, :, :, 0] | (nibbles[:, :, :, :, 1] << 4)
    octets: NDArray[np.uint8] = both.transpose(0, 2, 3, 1, 4).astype(np.uint8, copy=False)
    return octets


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


def image_weight(conv: Any) -> Floats:
    """A convolution's weight (out, in, y, x) -> (y, x, in, out)."""
    return array(conv.weight).transpose(2, 3, 1, 0)


def image_convolutions(cnn: Any) -> list[Any]:
    """The convolutions of the image encoder, in the order in which they are computed."""
    return [
        conv
        for block in cnn.cnn
        for conv in (block.conv, *(c for r in (block.residual_0, block.residual_1) for c in (r.conv_0, r.conv_1)))
    ]


def channels_last(cnn: Any, columns: int) -> NDArray[np.int64]:
    """Where the columns of the image encoder's linear layer come from, if its input has channels last."""
    channels = cnn.cnn[-1].conv.out_channels
    return np.arange(columns).reshape(channels, -1).T.reshape(-1)
