"""Floating-point weights times a few tokens, widened in registers."""

from tvm import DataType
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.dense.tiles import SUMS, clear, first_of, tokens_at_once, turns, widen
from lram_export.kernels.tvm.cpu.loops import AHEAD, LINE, STACK, fetch, jobs_loop
from lram_export.kernels.tvm.functions import wide
from lram_export.targets.layout import TILE


def dense_float(rows: int, cols: int, tiles: int, parts: int, stored: str, lanes: int) -> PrimFunc:
    """y = W x for floating-point weights.

    ``parts`` matrices, each for its own ``cols`` inputs of x (rows, parts * cols); weights (parts * tiles, cols, 32)
    of type ``stored`` (float32, float16, or uint16: the upper halves of float32) -> y (rows, parts * tiles * 32).
    """
    vectors = TILE // lanes
    group = tokens_at_once(rows, max(3, SUMS // vectors))
    itemsize = DataType(stored).itemsize
    size = parts * tiles * TILE * cols * itemsize
    ahead, line = AHEAD // (TILE * itemsize), LINE // itemsize

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, parts * cols), "float32"),
        weight: T.Buffer((parts * tiles, cols, TILE), stored),
        y: T.Buffer((rows, parts * tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for tile in jobs_loop(parts * tiles, size):
            for turn in T.serial(turns(rows, group)):
                first = T.meta_var(first_of(turn, rows, group))
                total = T.alloc_buffer((group, TILE), "float32", scope=STACK)
                clear(total, group, vectors, lanes)
                for i in T.serial(cols):
                    for n in T.unroll(TILE // line):
                        T.evaluate(fetch(weight, tile, i + ahead, n * line))
                    # beside the sums, registers hold an input of each token and one vector of weights
                    for v in T.unroll(vectors):
                        for t in T.unroll(group):
                            at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                            value = T.meta_var(x[first + t, tile // tiles * cols + i])
                            total[t, at] = total[t, at] + widen(weight[tile, i, at], stored, lanes) * wide(value, lanes)
                for t in T.unroll(group):
                    for v in T.unroll(vectors):
                        at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                        y[first + t, T.ramp(tile * TILE + v * lanes, 1, lanes)] = total[t, at]

    return kernel
