"""Integer codes times a few tokens, dequantized in registers: for processors without a byte dot product."""

from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.dense.tiles import QUAD, clear, first_of, tokens_at_once, turns
from lram_export.kernels.tvm.cpu.loops import AHEAD, LINE, STACK, fetch, jobs_loop
from lram_export.kernels.tvm.functions import typed, wide
from lram_export.spec.precision import GROUP, WIDE_GROUP
from lram_export.targets.layout import TILE, wide_groups


def byte_of(word: Any, number: int, lanes: int) -> Any:
    """Signed byte of every lane as float32."""
    raised = word << wide(T.int32(24 - 8 * number), lanes)
    return T.Cast(typed("float32", lanes), raised >> wide(T.int32(24), lanes))


def half_byte_of(word: Any, number: int, lanes: int) -> Any:
    """The code of one of eight inputs of every lane, which is stored as code + 8, as float32.

    Halves lie low, high, low, high in a word; low ones are inputs 0 to 3, high ones 4 to 7.
    """
    place = 2 * (number % 4) + number // 4
    code = (word >> wide(T.int32(4 * place), lanes)) & wide(T.int32(15), lanes)
    return T.Cast(typed("float32", lanes), code) - 8.0


def without_offset(word: Any, lanes: int) -> Any:
    """Four int8g codes in every lane, which are stored as code + 128, as signed bytes."""
    return word ^ wide(T.int32(0x80808080 - (1 << 32)), lanes)


def dense_int8g_dequantized(rows: int, cols: int, tiles: int, lanes: int) -> PrimFunc:
    """y = W x for int8g codes, dequantized in registers: x (rows, cols) float32, weights as above."""
    group, groups, quads, vectors = tokens_at_once(rows), wide_groups(cols), -(-cols // QUAD), 2
    size, ahead, outputs = tiles * TILE * cols, AHEAD // (QUAD * TILE), vectors * lanes

    @T.inline
    def add_quad(x, weight, of_group, tile, first, part, i, count):
        for n in T.unroll(-(-4 * outputs // LINE)):
            T.evaluate(fetch(weight, tile, i + ahead, 4 * part * outputs + n * LINE))
        for v in T.unroll(vectors):
            place = T.meta_var(T.ramp((part * outputs + v * lanes) * 4, 1, 4 * lanes))
            word = T.bind(without_offset(T.reinterpret(typed("int32", lanes), weight[tile, i, place]), lanes))
            for b in T.unroll(count):
                value = T.bind(byte_of(word, b, lanes))
                for t in T.unroll(group):
                    at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                    of_group[t, at] = of_group[t, at] + value * wide(x[first + t, 4 * i + b], lanes)

    @T.inline
    def add_group(x, weight, weight_scales, total, tile, first, part, g, inputs):
        of_group = T.alloc_buffer((group, outputs), "float32", scope=STACK)
        clear(of_group, group, vectors, lanes)
        start = T.meta_var(g * (WIDE_GROUP // QUAD))
        for i in T.serial(inputs // QUAD):
            add_quad(x, weight, of_group, tile, first, part, start + i, QUAD)
        if inputs % QUAD != 0:
            add_quad(x, weight, of_group, tile, first, part, start + inputs // QUAD, inputs % QUAD)
        for t in T.unroll(group):
            for v in T.unroll(vectors):
                at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                scale = T.meta_var(weight_scales[tile, g, T.ramp(part * outputs + v * lanes, 1, lanes)])
                total[t, at] = total[t, at] + of_group[t, at] * scale

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, cols), "float32"),
        weight: T.Buffer((tiles, quads, QUAD * TILE), "int8"),
        weight_scales: T.Buffer((tiles, groups, TILE), "float32"),
        y: T.Buffer((rows, tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for tile in jobs_loop(tiles, size):
            for turn in T.serial(turns(rows, group)):
                first = T.meta_var(first_of(turn, rows, group))
                for part in T.serial(TILE // outputs):
                    total = T.alloc_buffer((group, outputs), "float32", scope=STACK)
                    clear(total, group, vectors, lanes)
                    for g in T.serial(cols // WIDE_GROUP):
                        add_group(x, weight, weight_scales, total, tile, first, part, g, WIDE_GROUP)
                    if cols % WIDE_GROUP != 0:
                        add_group(x, weight, weight_scales, total, tile, first, part, groups - 1, cols % WIDE_GROUP)
                    for t in T.unroll(group):
                        for v in T.unroll(vectors):
                            at = T.meta_var(T.ramp(tile * TILE + part * outputs + v * lanes, 1, lanes))
                            y[first + t, at] = total[t, T.ramp(v * lanes, 1, lanes)]

    return kernel


def dense_int8_dequantized(rows: int, cols: int, tiles: int, lanes: int) -> PrimFunc:
    """y = W x for int8 codes, dequantized in registers: x (rows, cols) float32, weights as above."""
    group, quads, vectors = tokens_at_once(rows), -(-cols // QUAD), TILE // lanes
    size, ahead = tiles * TILE * cols, AHEAD // (4 * TILE)

    @T.inline
    def add_quad(x, weight, total, tile, first, i, count):
        for n in T.unroll(4 * TILE // LINE):
            T.evaluate(fetch(weight, tile, i + ahead, n * LINE))
        for v in T.unroll(vectors):
            word = T.bind(T.reinterpret(typed("int32", lanes), weight[tile, i, T.ramp(v * lanes * 4, 1, 4 * lanes)]))
            for b in T.unroll(count):
                value = T.bind(byte_of(word, b, lanes))
                for t in T.unroll(group):
                    at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                    total[t, at] = total[t, at] + value * wide(x[first + t, 4 * i + b], lanes)

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, cols), "float32"),
        weight: T.Buffer((tiles, quads, 4 * TILE), "int8"),
        weight_scales: T.Buffer((tiles, TILE), "float32"),
        y: T.Buffer((rows, tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for tile in jobs_loop(tiles, size):
            for turn in T.serial(turns(rows, group)):
                first = T.meta_var(first_of(turn, rows, group))
                total = T.alloc_buffer((group, TILE), "float32", scope=STACK)
                clear(total, group, vectors, lanes)
                for i in T.serial(cols // QUAD):
                    add_quad(x, weight, total, tile, first, i, QUAD)
                if cols % QUAD != 0:
                    add_quad(x, weight, total, tile, first, quads - 1, cols % QUAD)
                for t in T.unroll(group):
                    for v in T.unroll(vectors):
                        at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                        y[first + t, T.ramp(tile * TILE + v * lanes, 1, lanes)] = total[t, at] * weight_scales[tile, at]

    return kernel


def dense_int4_dequantized(rows: int, cols: int, tiles: int, lanes: int) -> PrimFunc:
    """y = W x for int4 codes, dequantized in registers; groups are filled up in the weights."""
    group, groups, vectors = tokens_at_once(rows), -(-cols // GROUP), 2
    size, ahead = tiles * TILE * cols // 2, AHEAD // (TILE * GROUP // 2)
    outputs = vectors * lanes

    @T.inline
    def add_octet(x, weight, of_group, tile, first, part, g, i, count):
        for n in T.unroll(-(-4 * outputs // LINE)):
            T.evaluate(fetch(weight, tile, g + ahead, i, 4 * part * outputs + n * LINE))
        for v in T.unroll(vectors):
            both = T.meta_var(weight[tile, g, i, T.ramp((part * outputs + v * lanes) * 4, 1, 4 * lanes)])
            word = T.bind(T.reinterpret(typed("int32", lanes), both))
            for n in T.unroll(count):
                value = T.bind(half_byte_of(word, n, lanes))
                for t in T.unroll(group):
                    at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                    of_group[t, at] = of_group[t, at] + value * wide(x[first + t, g * GROUP + 8 * i + n], lanes)

    @T.inline
    def add_group(x, weight, weight_scales, total, tile, first, part, g, inputs):
        of_group = T.alloc_buffer((group, outputs), "float32", scope=STACK)
        clear(of_group, group, vectors, lanes)
        for i in T.serial(inputs // 8):
            add_octet(x, weight, of_group, tile, first, part, g, i, 8)
        if inputs % 8 != 0:
            add_octet(x, weight, of_group, tile, first, part, g, inputs // 8, inputs % 8)
        for t in T.unroll(group):
            for v in T.unroll(vectors):
                at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                scale = T.meta_var(weight_scales[tile, g, T.ramp(part * outputs + v * lanes, 1, lanes)])
                total[t, at] = total[t, at] + of_group[t, at] * scale

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, cols), "float32"),
        weight: T.Buffer((tiles, groups, GROUP // 8, 4 * TILE), "int8"),
        weight_scales: T.Buffer((tiles, groups, TILE), "float32"),
        y: T.Buffer((rows, tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for tile in jobs_loop(tiles, size):
            for turn in T.serial(turns(rows, group)):
                first = T.meta_var(first_of(turn, rows, group))
                for part in T.serial(TILE // outputs):
                    total = T.alloc_buffer((group, outputs), "float32", scope=STACK)
                    clear(total, group, vectors, lanes)
                    for g in T.serial(cols // GROUP):
                        add_group(x, weight, weight_scales, total, tile, first, part, g, GROUP)
                    if cols % GROUP != 0:
                        add_group(x, weight, weight_scales, total, tile, first, part, groups - 1, cols % GROUP)
                    for t in T.unroll(group):
                        for v in T.unroll(vectors):
                            at = T.meta_var(T.ramp(tile * TILE + part * outputs + v * lanes, 1, lanes))
                            y[first + t, at] = total[t, T.ramp(v * lanes, 1, lanes)]

    return kernel
