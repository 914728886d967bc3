"""Blocks of a Decision Transformer as `kernels/native/src/backbones/decision_transformer` reads them, in its order."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.backbones.decision_transformer.config import CACHE
from lram_export.exporters.native.matrices import Matrices, Matrix, roomy, rows, stacked
from lram_export.spec.tensors import array
from lram_export.targets.native.format import (
    FIRST_BLOCK_ROLE,
    BlockEntry,
    Tensor,
    filled_tiles,
    plain,
    room_of,
    spread,
)

CACHED, WINDOW = 4, 5
"""The kinds of block."""


class Role(IntEnum):
    """What a tensor of a block is."""

    POSITIONS = FIRST_BLOCK_ROLE
    START = 33
    NORM = 34
    NORM_BIAS = 35
    ATTENTION = 36
    ATTENTION_BIAS = 37
    MERGE = 38
    MERGE_BIAS = 39
    FFN_NORM = 40
    FFN_NORM_BIAS = 41
    FFN_UP = 42
    FFN_UP_BIAS = 43
    FFN_DOWN = 44
    FFN_DOWN_BIAS = 45
    KEYS = 46
    VALUES = 47


def pack(number: int, block: Any, config: Any, matrices: Matrices) -> tuple[BlockEntry, Iterator[Tensor]]:
    """A block of the step graph: its entry, and its tensors in the order in which a step reads them."""
    kind, steps = (CACHED, config.context_length - 1) if config.context == CACHE else (WINDOW, config.context_length)
    entry = BlockEntry(kind, (config.num_heads, config.ffn_size, steps), (block.ln_1.eps,))
    return entry, _tensors(number, block, config, matrices)


def _tensors(number: int, block: Any, config: Any, matrices: Matrices) -> Iterator[Tensor]:
    def norm(role: Role, layer: Any) -> Iterator[Tensor]:
        yield plain(role, number, spread(array(layer.weight)))
        yield plain(role + 1, number, spread(array(layer.bias)))

    def linear(role: Role, matrix: Matrix, bias: NDArray[np.float32], name: str) -> Iterator[Tensor]:
        yield matrices.tiled(role, number, [roomy(matrix)], name)
        yield plain(role + 1, number, filled_tiles(bias))

    if number == 0:
        positions = matrices.backbone.positions
        yield plain(Role.POSITIONS, number, spread(array(positions.weight)))
        if config.context != CACHE:
            yield plain(Role.START, number, array(positions.start))
    width = config.head_size
    yield from norm(Role.NORM, block.ln_1)
    name = f"blocks.{number}.attn.c_attn"
    whole = matrices.linear(name)
    by_head = [rows(rows(whole, start, width), 0, room_of(width)) for start in range(0, whole.shape[0], width)]
    yield from linear(Role.ATTENTION, stacked(by_head), spread(array(block.attn.c_attn.bias), width), name)
    if config.context == CACHE:
        yield plain(Role.KEYS, number, array(block.key))
        yield plain(Role.VALUES, number, array(block.value))
    name = f"blocks.{number}.attn.c_proj"
    yield from linear(Role.MERGE, matrices.linear(name), array(block.attn.c_proj.bias), name)
    yield from norm(Role.FFN_NORM, block.ln_2)
    for role, part in ((Role.FFN_UP, "c_fc"), (Role.FFN_DOWN, "c_proj")):
        name = f"blocks.{number}.mlp.{part}"
        yield from linear(role, matrices.linear(name), array(getattr(block.mlp, part).bias), name)
