"""Weights in the order in which hand-written step kernels read them: what the targets `native` and `tvm` share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.spec.precision import GROUP, WIDE_GROUP
from lram_export.spec.tensors import Floats, array

TILE = 32
"""Outputs that are computed together; the last tile of a matrix is filled up with zeros."""


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


def wide_groups(cols: int) -> int:
    """Groups of int8g codes that a row of some columns has."""
    return -(-cols // WIDE_GROUP)


def int8g_quads(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """int8g codes (rows, cols) -> bytes (tiles, cols / 4, 32, 4) as of int8, each code + 128."""
    return int8_quads(codes).view(np.uint8) ^ np.uint8(128)


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
