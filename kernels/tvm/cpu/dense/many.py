"""Weight matrices times many tokens, which takes as long as its arithmetic.

The weights of a tile come into the cache as float32, those of some inputs at a time, and are multiplied there with all
tokens. Matrices lie as those for a few tokens.
"""

from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.dense.dequantized import byte_of, half_byte_of, without_offset
from lram_export.kernels.tvm.cpu.dense.tiles import QUAD, SUMS, widen
from lram_export.kernels.tvm.cpu.loops import STACK, jobs_loop
from lram_export.kernels.tvm.functions import typed, wide
from lram_export.spec.precision import GROUP, WIDE_GROUP
from lram_export.targets.layout import TILE, wide_groups

MANY = 64
"""From so many tokens on."""
INPUTS = 128
"""Inputs whose weights lie in the cache: whole groups of int4 codes, and one of int8g codes."""
assert INPUTS == WIDE_GROUP


def dense_many(rows: int, cols: int, tiles: int, parts: int, stored: str, lanes: int) -> PrimFunc:
    """y = W x: ``parts`` matrices, each for its own ``cols`` inputs of x (rows, parts * cols), stored as `float32`,
    `float16`, `uint16`, `int8`, `int8g` or `int4`; the last three, of which there is one part, with scales -> y (rows,
    parts * tiles * 32)."""
    vectors = TILE // lanes
    group = max(3, SUMS // vectors)
    size = parts * tiles * TILE * cols * rows
    blocks, quads, groups = -(-cols // INPUTS), -(-cols // QUAD), -(-cols // GROUP)
    weight_shape, weight_type, scales_shape = {
        "int8": ((tiles, quads, QUAD * TILE), "int8", (tiles, TILE)),
        "int8g": ((tiles, quads, QUAD * TILE), "int8", (tiles, wide_groups(cols), TILE)),
        "int4": ((tiles, groups, GROUP // 8, 4 * TILE), "int8", (tiles, groups, TILE)),
    }.get(stored, ((parts * tiles, cols, TILE), stored, None))

    def vector(v: Any) -> Any:
        return T.ramp(v * lanes, 1, lanes)

    def of_tile(v: Any, tile: Any) -> Any:
        return T.ramp(tile * TILE + v * lanes, 1, lanes)

    @T.inline
    def widen_floats(weight, scales, tile, start, inputs, held):
        for i in T.serial(inputs):
            for v in T.unroll(vectors):
                held[i, vector(v)] = widen(weight[tile, start + i, vector(v)], stored, lanes)

    @T.inline
    def widen_int8(weight, scales, tile, start, inputs, held):
        for i in T.serial((inputs + QUAD - 1) // QUAD):
            for v in T.unroll(vectors):
                quad = T.meta_var(weight[tile, start // QUAD + i, T.ramp(v * lanes * QUAD, 1, QUAD * lanes)])
                word = T.bind(T.reinterpret(typed("int32", lanes), quad))
                for b in T.unroll(QUAD):
                    held[QUAD * i + b, vector(v)] = byte_of(word, b, lanes) * scales[tile, vector(v)]

    @T.inline
    def widen_int8g(weight, scales, tile, start, inputs, held):
        for i in T.serial((inputs + QUAD - 1) // QUAD):
            for v in T.unroll(vectors):
                quad = T.meta_var(weight[tile, start // QUAD + i, T.ramp(v * lanes * QUAD, 1, QUAD * lanes)])
                word = T.bind(without_offset(T.reinterpret(typed("int32", lanes), quad), lanes))
                for b in T.unroll(QUAD):
                    scale = T.meta_var(scales[tile, start // WIDE_GROUP, vector(v)])
                    held[QUAD * i + b, vector(v)] = byte_of(word, b, lanes) * scale

    @T.inline
    def widen_int4(weight, scales, tile, start, inputs, held):
        for i in T.serial((inputs + 7) // 8):
            for v in T.unroll(vectors):
                g = T.meta_var(start // GROUP + i // (GROUP // 8))
                octet = T.meta_var(weight[tile, g, i % (GROUP // 8), T.ramp(v * lanes * 4, 1, 4 * lanes)])
                word = T.bind(T.reinterpret(typed("int32", lanes), octet))
                for n in T.unroll(8):
                    held[8 * i + n, vector(v)] = half_byte_of(word, n, lanes) * scales[tile, g, vector(v)]

    bring = {"int8": widen_int8, "int8g": widen_int8g, "int4": widen_int4}.get(stored, widen_floats)

    @T.inline
    def multiply_group(x, of_input, y, tile, column, start, inputs, first, count):
        total = T.alloc_buffer((count, TILE), "float32", scope=STACK)
        if start == 0:
            for t in T.unroll(count):
                for v in T.unroll(vectors):
                    total[t, vector(v)] = wide(T.float32(0), lanes)
        else:
            for t in T.unroll(count):
                for v in T.unroll(vectors):
                    total[t, vector(v)] = y[first + t, of_tile(v, tile)]
        for i in T.serial(inputs):
            # beside the sums, registers hold an input of each token and one vector of weights
            for v in T.unroll(vectors):
                for t in T.unroll(count):
                    value = T.meta_var(wide(x[first + t, column + i], lanes))
                    total[t, vector(v)] = total[t, vector(v)] + of_input(i, vector(v)) * value
        for t in T.unroll(count):
            for v in T.unroll(vectors):
                y[first + t, of_tile(v, tile)] = total[t, vector(v)]

    @T.inline
    def multiply(x, of_input, y, tile, start, inputs):
        column = T.meta_var(tile // tiles * cols + start)
        for g in T.serial(rows // group):
            multiply_group(x, of_input, y, tile, column, start, inputs, g * group, group)
        if rows % group != 0:
            multiply_group(x, of_input, y, tile, column, start, inputs, rows - rows % group, rows % group)

    def inputs_of(block: Any) -> Any:
        return INPUTS if cols % INPUTS == 0 else T.min(cols - block * INPUTS, INPUTS)

    def of_weight(weight: Any, tile: Any, start: Any) -> Any:
        return lambda i, at: weight[tile, start + i, at]

    def of_held(held: Any) -> Any:
        return lambda i, at: held[i, at]

    if scales_shape is not None:

        @T.prim_func(s_tir=True)
        def kernel_with_scales(
            x: T.Buffer((rows, cols), "float32"),
            weight: T.Buffer(weight_shape, weight_type),
            scales: T.Buffer(scales_shape, "float32"),
            y: T.Buffer((rows, tiles * TILE), "float32"),
        ):
            T.func_attr({"tirx.noalias": True})
            for tile in jobs_loop(tiles, size):
                held = T.alloc_buffer((INPUTS, TILE), "float32", scope=STACK)
                for block in T.serial(blocks):
                    bring(weight, scales, tile, block * INPUTS, inputs_of(block), held)
                    multiply(x, of_held(held), y, tile, block * INPUTS, inputs_of(block))

        return kernel_with_scales

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, parts * cols), "float32"),
        weight: T.Buffer(weight_shape, weight_type),
        y: T.Buffer((rows, parts * tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for tile in jobs_loop(parts * tiles, size):
            if stored == "float32":
                for block in T.serial(blocks):
                    start = T.meta_var(block * INPUTS)
                    multiply(x, of_weight(weight, tile, start), y, tile, start, inputs_of(block))
            else:
                held = T.alloc_buffer((INPUTS, TILE), "float32", scope=STACK)
                for block in T.serial(blocks):
                    bring(weight, weight, tile, block * INPUTS, inputs_of(block), held)
                    multiply(x, of_held(held), y, tile, block * INPUTS, inputs_of(block))

    return kernel
