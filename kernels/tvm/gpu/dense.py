"""Weight matrices times a few tokens on a GPU, see `kernels/tvm/cpu/dense`: a block per tile."""

from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.dense.tiles import QUAD, first_of, tokens_at_once, turns, widen
from lram_export.kernels.tvm.functions import span, wide
from lram_export.kernels.tvm.gpu.threads import WARP, blocks, shared, threads
from lram_export.spec.precision import GROUP, WIDE_GROUP
from lram_export.targets.layout import TILE, wide_groups

MOST_TOKENS = 8
"""Tokens that a block multiplies with a weight that it has read."""
AT_ONCE = 4
"""Steps of a thread whose weights it reads before it needs the first of them: memory answers late."""


def warps(tokens: int) -> int:
    """Warps of a block: as many as there are, unless sums of many tokens need the registers."""
    return 32 if tokens <= MOST_TOKENS // 2 else 16


def _product(rows: int, tiles: int, steps: int, words: tuple[int, str], load: Any, multiply: Any, scaled: bool) -> Any:
    """The frame of every product, for one block: a tile and some tokens; ``steps`` of inputs among the warps.

    ``load(weight, read, place, tile, step, lane)`` reads what a step needs, ``words`` many of a type, to ``place`` in
    registers; ``multiply(x, read, place, scales, total, tile, step, lane, first)`` adds it, times the inputs, to a
    thread's output, of which four sums are kept.
    """
    group = tokens_at_once(rows, MOST_TOKENS)
    count = warps(group)
    each, stored = words

    @T.inline
    def product(x, weight, scales, y, block):
        tile = T.meta_var(block % tiles)
        first = T.meta_var(first_of(block // tiles, rows, group))
        sums = T.alloc_buffer((group, count, WARP), "float32", scope=shared())
        for thread in threads(count * WARP):
            lane = T.meta_var(thread % WARP)
            total = T.alloc_buffer((group, QUAD), "float32", scope="local")
            for t in T.unroll(group):
                total[t, span(0, QUAD)] = wide(T.float32(0), QUAD)
            for r in T.serial((steps + count * AT_ONCE - 1) // (count * AT_ONCE)):
                read = T.alloc_buffer((AT_ONCE * each,), stored, scope="local")
                for u in T.unroll(AT_ONCE):
                    step = T.meta_var((r * AT_ONCE + u) * count + thread // WARP)
                    if (r * AT_ONCE + u) * count + thread // WARP < steps:
                        load(weight, read, u * each, tile, step, lane)
                for u in T.unroll(AT_ONCE):
                    step = T.meta_var((r * AT_ONCE + u) * count + thread // WARP)
                    if (r * AT_ONCE + u) * count + thread // WARP < steps:
                        multiply(x, read, u * each, scales, total, tile, step, lane, first)
            for t in T.unroll(group):
                sums[t, thread // WARP, lane] = total[t, 0] + total[t, 1] + total[t, 2] + total[t, 3]
        for thread in threads(count * WARP):
            if thread < group * WARP:
                t = T.meta_var(thread // WARP)
                lane = T.meta_var(thread % WARP)
                result = T.alloc_buffer((1,), "float32", scope="local")
                result[0] = sums[t, 0, lane]
                for i in T.unroll(count - 1):
                    result[0] = result[0] + sums[t, i + 1, lane]
                if scaled:
                    y[first + t, tile * TILE + lane] = result[0] * scales[tile, lane]
                else:
                    y[first + t, tile * TILE + lane] = result[0]

    return product


def _inputs(cols: int) -> Any:
    """Reads four inputs of a token to registers; 0 beyond the last one."""

    @T.inline
    def inputs(values, x, token, start, column):
        if cols % QUAD == 0:
            values[span(0, QUAD)] = x[token, span(start + column, QUAD)]
        else:
            for k in T.unroll(QUAD):
                values[k] = T.if_then_else(column + k < cols, x[token, start + column + k], T.float32(0))

    return inputs


def dense_float(rows: int, cols: int, tiles: int, parts: int, stored: str, lanes: int) -> PrimFunc:
    """y = W x for floating-point weights, see `cpu/dense`: four inputs at a time."""
    group, inputs = tokens_at_once(rows, MOST_TOKENS), _inputs(cols)

    def column(number: Any) -> Any:  # some that the last step reads may not be there; their inputs are 0
        return number if cols % QUAD == 0 else T.min(number, cols - 1)

    @T.inline
    def load(weight, read, place, tile, step, lane):
        for k in T.unroll(QUAD):
            read[place + k] = weight[tile, column(QUAD * step + k), lane]

    @T.inline
    def multiply(x, read, place, scales, total, tile, step, lane, first):
        values = T.alloc_buffer((QUAD,), "float32", scope="local")
        for t in T.unroll(group):
            inputs(values, x, first + t, tile // tiles * cols, QUAD * step)
            weights = T.meta_var(widen(read[span(place, QUAD)], stored, QUAD))
            total[t, span(0, QUAD)] = total[t, span(0, QUAD)] + weights * values[span(0, QUAD)]

    product = _product(rows, parts * tiles, -(-cols // QUAD), (QUAD, stored), load, multiply, False)

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, parts * cols), "float32"),
        weight: T.Buffer((parts * tiles, cols, TILE), stored),
        y: T.Buffer((rows, parts * tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(turns(rows, group) * parts * tiles):
            product(x, weight, weight, y, block)

    return kernel


def dense_int8_dequantized(rows: int, cols: int, tiles: int, lanes: int) -> PrimFunc:
    """y = W x for int8 codes, see `cpu/dense`: four inputs of an output are one word of a thread."""
    group, quads, inputs = tokens_at_once(rows, MOST_TOKENS), -(-cols // QUAD), _inputs(cols)

    @T.inline
    def load(weight, read, place, tile, step, lane):
        read[span(place, QUAD)] = weight[tile, step, span(QUAD * lane, QUAD)]

    @T.inline
    def multiply(x, read, place, scales, total, tile, step, lane, first):
        values = T.alloc_buffer((QUAD,), "float32", scope="local")
        for t in T.unroll(group):
            inputs(values, x, first + t, 0, QUAD * step)
            codes = T.meta_var(T.Cast("float32x4", read[span(place, QUAD)]))
            total[t, span(0, QUAD)] = total[t, span(0, QUAD)] + codes * values[span(0, QUAD)]

    product = _product(rows, tiles, quads, (QUAD, "int8"), load, multiply, True)

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, cols), "float32"),
        weight: T.Buffer((tiles, quads, QUAD * TILE), "int8"),
        weight_scales: T.Buffer((tiles, TILE), "float32"),
        y: T.Buffer((rows, tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(turns(rows, group) * tiles):
            product(x, weight, weight_scales, y, block)

    return kernel


def dense_int8g_dequantized(rows: int, cols: int, tiles: int, lanes: int) -> PrimFunc:
    """y = W x for int8g codes, see `cpu/dense`: four inputs of an output are one word of a thread."""
    group, quads, inputs = tokens_at_once(rows, MOST_TOKENS), -(-cols // QUAD), _inputs(cols)

    @T.inline
    def load(weight, read, place, tile, step, lane):
        read[span(place, QUAD)] = weight[tile, step, span(QUAD * lane, QUAD)]

    @T.inline
    def multiply(x, read, place, scales, total, tile, step, lane, first):
        values = T.alloc_buffer((QUAD,), "float32", scope="local")
        signed = T.meta_var(T.Cast("int32x4", read[span(place, QUAD)] ^ wide(T.int8(-128), QUAD)))
        codes = T.meta_var(T.Cast("float32x4", signed))
        for t in T.unroll(group):
            inputs(values, x, first + t, 0, QUAD * step)
            scale = T.meta_var(wide(scales[tile, step // (WIDE_GROUP // QUAD), lane], QUAD))
            total[t, span(0, QUAD)] = total[t, span(0, QUAD)] + codes * scale * values[span(0, QUAD)]

    product = _product(rows, tiles, quads, (QUAD, "int8"), load, multiply, False)

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, cols), "float32"),
        weight: T.Buffer((tiles, quads, QUAD * TILE), "int8"),
        weight_scales: T.Buffer((tiles, wide_groups(cols), TILE), "float32"),
        y: T.Buffer((rows, tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(turns(rows, group) * tiles):
            product(x, weight, weight_scales, y, block)

    return kernel


def dense_int4_dequantized(rows: int, cols: int, tiles: int, lanes: int) -> PrimFunc:
    """y = W x for int4 codes, see `cpu/dense`: eight inputs of an output are one word of a thread."""
    group, groups, inputs = tokens_at_once(rows, MOST_TOKENS), -(-cols // GROUP), _inputs(cols)

    @T.inline
    def load(weight, read, place, tile, step, lane):
        read[span(place, QUAD)] = weight[tile, step // 8, step % 8, span(QUAD * lane, QUAD)]

    @T.inline
    def multiply(x, read, place, scales, total, tile, step, lane, first):
        values = T.alloc_buffer((QUAD,), "float32", scope="local")
        for half in T.unroll(2):  # of a byte, and of the eight inputs
            both = T.meta_var(T.Cast("int32x4", read[span(place, QUAD)]))
            nibbles = T.meta_var((both >> wide(4 * half, QUAD)) & wide(T.int32(15), QUAD))
            codes = T.meta_var(T.Cast("float32x4", nibbles - wide(T.int32(8), QUAD)))
            for t in T.unroll(group):
                inputs(values, x, first + t, 0, 8 * step + QUAD * half)
                scale = T.meta_var(wide(scales[tile, step // 8, lane], QUAD))
                total[t, span(0, QUAD)] = total[t, span(0, QUAD)] + codes * scale * values[span(0, QUAD)]

    product = _product(rows, tiles, -(-cols // 8), (QUAD, "int8"), load, multiply, False)

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, cols), "float32"),
        weight: T.Buffer((tiles, groups, GROUP // 8, QUAD * TILE), "int8"),
        weight_scales: T.Buffer((tiles, groups, TILE), "float32"),
        y: T.Buffer((rows, tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(turns(rows, group) * tiles):
            product(x, weight, weight_scales, y, block)

    return kernel
