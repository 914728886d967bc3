"""Weight matrices times a few tokens on a GPU, see `kernels/tvm/cpu/dense.py`: a block per tile."""

from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.dense import QUAD, first_of, tokens_at_once, turns
from lram_export.kernels.tvm.gpu.threads import WARP, WARPS, blocks, shared, threads
from lram_export.spec.precision import GROUP
from lram_export.targets.layout import TILE

MOST_TOKENS = 8
"""Tokens that a block multiplies with a weight that it has read."""


def _product(rows: int, parts: int, tiles: int, steps: int, accumulate: Any, scaled: bool) -> Any:
    """The frame of every product, for one block: a tile and some tokens; ``steps`` of inputs among the warps.

    ``accumulate(x, weight, scales, total, tile, step, lane, first)`` adds a step's inputs to a thread's output.
    """
    group = tokens_at_once(rows, MOST_TOKENS)

    @T.inline
    def product(x, weight, scales, y, block):
        tile = T.meta_var(block % (parts * tiles))
        first = T.meta_var(first_of(block // (parts * tiles), rows, group))
        sums = T.alloc_buffer((group, WARPS, WARP), "float32", scope=shared())
        for thread in threads():
            total = T.alloc_buffer((group,), "float32", scope="local")
            for t in T.unroll(group):
                total[t] = T.float32(0)
            for i in T.serial((steps + WARPS - 1) // WARPS):
                if i * WARPS + thread // WARP < steps:
                    accumulate(x, weight, scales, total, tile, i * WARPS + thread // WARP, thread % WARP, first)
            for t in T.unroll(group):
                sums[t, thread // WARP, thread % WARP] = total[t]
        for lane in threads():
            if lane < WARP:
                result = T.alloc_buffer((1,), "float32", scope="local")
                for t in T.unroll(group):
                    result[0] = sums[t, 0, lane]
                    for i in T.serial(WARPS - 1):
                        result[0] = result[0] + sums[t, i + 1, lane]
                    if scaled:
                        y[first + t, tile * TILE + lane] = result[0] * scales[tile, lane]
                    else:
                        y[first + t, tile * TILE + lane] = result[0]

    return product


def _input(x: Any, token: Any, column: Any, cols: int, at_once: int) -> Any:
    """An input of a token; 0 beyond the last one, where steps of ``at_once`` inputs do not end with it."""
    return x[token, column] if cols % at_once == 0 else T.if_then_else(column < cols, x[token, column], T.float32(0))


def dense_float(rows: int, cols: int, tiles: int, parts: int, stored: str, lanes: int) -> PrimFunc:
    """y = W x for floating-point weights, see `cpu/dense.py`."""
    group = tokens_at_once(rows, MOST_TOKENS)

    def widened(weight: Any) -> Any:
        if stored == "uint16":
            return T.reinterpret("float32", T.Cast("uint32", weight) << T.uint32(16))
        return weight if stored == "float32" else T.Cast("float32", weight)

    @T.inline
    def accumulate(x, weight, scales, total, tile, i, lane, first):
        value = T.bind(widened(weight[tile, i, lane]))
        for t in T.unroll(group):
            total[t] = total[t] + value * x[first + t, tile // tiles * cols + i]

    product = _product(rows, parts, tiles, cols, accumulate, False)

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
    """y = W x for int8 codes, see `cpu/dense.py`: four inputs of an output are one word of a thread."""
    group, quads = tokens_at_once(rows, MOST_TOKENS), -(-cols // QUAD)

    @T.inline
    def accumulate(x, weight, scales, total, tile, i, lane, first):
        for b in T.unroll(4):
            value = T.bind(T.Cast("float32", weight[tile, i, lane * 4 + b]))
            for t in T.unroll(group):
                total[t] = total[t] + value * _input(x, first + t, 4 * i + b, cols, QUAD)

    product = _product(rows, 1, tiles, quads, accumulate, True)

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, cols), "float32"),
        weight: T.Buffer((tiles, quads, 4 * TILE), "int8"),
        weight_scales: T.Buffer((tiles, TILE), "float32"),
        y: T.Buffer((rows, tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(turns(rows, group) * tiles):
            product(x, weight, weight_scales, y, block)

    return kernel


def dense_int4_dequantized(rows: int, cols: int, tiles: int, lanes: int) -> PrimFunc:
    """y = W x for int4 codes, see `cpu/dense.py`: eight inputs of an output are one word of a thread."""
    group, groups = tokens_at_once(rows, MOST_TOKENS), -(-cols // GROUP)

    @T.inline
    def accumulate(x, weight, scales, total, tile, i, lane, first):
        for n in T.unroll(8):
            both = T.meta_var(T.Cast("int32", weight[tile, i // 8, i % 8, lane * 4 + n % 4]))
            code = T.bind(T.Cast("float32", ((both >> (n // 4 * 4)) & 15) - 8) * scales[tile, i // 8, lane])
            for t in T.unroll(group):
                total[t] = total[t] + code * _input(x, first + t, 8 * i + n, cols, 8)

    product = _product(rows, 1, tiles, -(-cols // 8), accumulate, False)

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, cols), "float32"),
        weight: T.Buffer((tiles, groups, GROUP // 8, 4 * TILE), "int8"),
        weight_scales: T.Buffer((tiles, groups, TILE), "float32"),
        y: T.Buffer((rows, tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(turns(rows, group) * tiles):
            product(x, weight, weight_scales, y, block)

    return kernel
