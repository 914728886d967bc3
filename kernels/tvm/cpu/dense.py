"""Weight matrices times some tokens: a weight that is read is multiplied with three of them, or more.

A matrix lies in tiles of 32 outputs (`lram_export/targets/layout.py`), the tiles are divided among the threads. Three
kinds of kernel: floating-point weights, widened in registers; integer codes multiplied by an instruction for byte dot
products, with activations in two planes of codes (x = scale * (128 * high + low), about 15 bits); and integer codes
that are dequantized in registers, for processors without such an instruction.
"""

import math
from collections.abc import Callable
from typing import Any

from tvm import DataType
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.loops import AHEAD, LINE, STACK, fetch, jobs_loop, rows_loop
from lram_export.kernels.tvm.functions import lane_max, magnitude, span, typed, wide
from lram_export.spec.precision import GROUP, WIDE_GROUP
from lram_export.targets.layout import TILE, wide_groups

PLANES, QUAD = 2, 4
"""Planes of codes; codes that a byte dot product takes at a time."""
LARGEST = 16256.0
"""128 * 127: the largest activation in two planes of codes."""
SUMS = 12
"""Vectors of sums that take as long to start as one takes to end."""


def tokens_at_once(rows: int, most: int = 3) -> int:
    """How many tokens are multiplied with a weight while it is in a register: up to ``most``, in as few turns."""
    return -(-rows // -(-rows // most))


def turns(rows: int, group: int) -> int:
    """How many groups of tokens there are."""
    return -(-rows // group)


def first_of(turn: Any, rows: int, group: int) -> Any:
    """The first token of a group; the last group may begin before the one before it ends."""
    return turn * group if rows % group == 0 else T.min(turn * group, rows - group)


@T.inline
def clear(total, count, vectors, lanes):
    """Zeros into the sums of ``count`` tokens."""
    for t in T.unroll(count):
        for v in T.unroll(vectors):
            total[t, T.ramp(v * lanes, 1, lanes)] = wide(T.float32(0), lanes)


def widen(weight: Any, stored: str, lanes: int) -> Any:
    """Weights of type ``stored`` as float32."""
    if stored == "uint16":
        bits = T.Cast(typed("uint32", lanes), weight) << wide(T.uint32(16), lanes)
        return T.reinterpret(typed("float32", lanes), bits)
    return weight if stored == "float32" else T.Cast(typed("float32", lanes), weight)


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


def encode(rows: int, cols: int, padded: int, unsigned: bool, group: int, lanes: int) -> PrimFunc:
    """Activations as two planes of int8 codes, with one scale per token.

    x (rows, cols) -> codes (rows, 2, padded), scales (rows); with a ``group`` of inputs also, for each of them, the sum
    of its codes times what makes weights stored without a sign what they are: -8 for int4, whose groups are 64 inputs,
    -128 for int8g with 128: (rows, 2, groups). ``unsigned`` stores code + 128. Inputs beyond ``cols`` have code 0.
    """
    lanes = math.gcd(cols, lanes)
    groups, offset = (-(-padded // group), 8 if group == GROUP else 128) if group else (1, 0)
    flip = -128 if unsigned else 0

    def inputs_of(g: Any) -> Any:
        return T.min(group, padded - g * group) if group and padded % group else group

    def as_bytes(code: Any) -> Any:
        return T.Cast(typed("int8", lanes), T.Cast(typed("int32", lanes), code) ^ wide(T.int32(flip), lanes))

    @T.inline
    def encode_vector(x, row, i, inverse, codes, scales):
        at = T.meta_var(span(i, lanes))
        scaled = T.bind(T.nearbyint(x[row, at] * wide(inverse, lanes)))
        high = T.bind(T.nearbyint(scaled * 0.0078125))
        codes[row, 0, at] = as_bytes(high)
        codes[row, 1, at] = as_bytes(scaled - high * 128.0)

    @T.inline
    def find_scale(x, row, scales):
        peak = T.alloc_buffer((lanes,), "float32", scope=STACK)
        peak[span(0, lanes)] = wide(T.float32(1e-30), lanes)
        for i in T.serial(cols // lanes):
            peak[span(0, lanes)] = T.max(peak[span(0, lanes)], magnitude(x[row, span(i * lanes, lanes)]))
        scales[row] = lane_max(peak[span(0, lanes)]) / T.float32(LARGEST)

    @T.inline
    def pad(codes, row):
        for i in T.serial(padded - cols):
            for p in T.unroll(PLANES):
                codes[row, p, cols + i] = T.int8(flip)

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, cols), "float32"),
        codes: T.Buffer((rows, PLANES, padded), "int8"),
        scales: T.Buffer((rows,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(rows, cols):
            find_scale(x, row, scales)
            inverse = T.bind(T.float32(1) / scales[row])
            for i in T.serial(cols // lanes):
                encode_vector(x, row, i * lanes, inverse, codes, scales)
            pad(codes, row)

    @T.prim_func(s_tir=True)
    def kernel_with_sums(
        x: T.Buffer((rows, cols), "float32"),
        codes: T.Buffer((rows, PLANES, padded), "int8"),
        scales: T.Buffer((rows,), "float32"),
        group_sums: T.Buffer((rows, PLANES, groups), "int32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(rows, cols):
            find_scale(x, row, scales)
            inverse = T.bind(T.float32(1) / scales[row])
            for i in T.serial(cols // lanes):
                encode_vector(x, row, i * lanes, inverse, codes, scales)
            pad(codes, row)
            for p in T.unroll(PLANES):
                for g in T.serial(groups):
                    total = T.alloc_buffer((1,), "int32", scope=STACK)
                    total[0] = 0
                    for i in T.serial(inputs_of(g)):
                        total[0] = total[0] + T.Cast("int32", codes[row, p, g * group + i])
                    group_sums[row, p, g] = total[0] * -offset

    return kernel_with_sums if group else kernel


def _four_codes(codes: Any, row: Any, plane: Any, at: Any, lanes: int) -> Any:
    """Four neighbouring codes of a token in every lane."""
    word = T.reinterpret("int32", codes[row, plane, T.ramp(at, 1, 4)])
    return T.reinterpret(typed("int8", 4 * lanes), wide(word, lanes))


def _dot(intrinsic: str, unsigned: bool, lanes: int) -> Callable[[Any, Any, Any], Any]:
    """The instruction: total + weights * activations, four bytes to a lane; the unsigned side goes first."""
    number = T.llvm_lookup_intrinsic_id(intrinsic)

    def dot(total: Any, weights: Any, activations: Any) -> Any:
        first, second = (activations, weights) if unsigned else (weights, activations)
        return T.call_llvm_pure_intrin(typed("int32", lanes), number, total, first, second)

    return dot


def dense_int8_dot(
    rows: int, cols: int, tiles: int, *, intrinsic: str, unsigned: bool, outputs: int, lanes: int
) -> PrimFunc:
    """y = W x for int8 codes with byte dot products, ``outputs`` outputs of a tile at once.

    ``cols`` is a multiple of 4. Codes and scales of x from :func:`encode`; weights (tiles, cols / 4, 128). With
    unsigned activations every sum starts at -128 times the sum of its row's codes.
    """
    group, quads, vectors = tokens_at_once(rows), cols // 4, outputs // lanes
    size, ahead = tiles * TILE * cols, AHEAD // (4 * TILE)
    dot = _dot(intrinsic, unsigned, lanes)

    @T.prim_func(s_tir=True)
    def kernel(
        codes: T.Buffer((rows, PLANES, cols), "int8"),
        scales: T.Buffer((rows,), "float32"),
        weight: T.Buffer((tiles, quads, 4 * TILE), "int8"),
        weight_scales: T.Buffer((tiles, TILE), "float32"),
        starts: T.Buffer((tiles, TILE), "int32"),
        y: T.Buffer((rows, tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for tile in jobs_loop(tiles, size):
            for turn in T.serial(turns(rows, group)):
                first = T.meta_var(first_of(turn, rows, group))
                for part in T.serial(TILE // outputs):
                    total = T.alloc_buffer((group * PLANES, outputs), "int32", scope=STACK)
                    for p in T.unroll(group * PLANES):
                        for v in T.unroll(vectors):
                            if unsigned:
                                total[p, T.ramp(v * lanes, 1, lanes)] = starts[
                                    tile, T.ramp(part * outputs + v * lanes, 1, lanes)
                                ]
                            else:
                                total[p, T.ramp(v * lanes, 1, lanes)] = wide(T.int32(0), lanes)
                    for i in T.serial(quads):
                        for n in T.unroll(-(-4 * outputs // LINE)):
                            T.evaluate(fetch(weight, tile, i + ahead, 4 * part * outputs + n * LINE))
                        for p in T.unroll(group * PLANES):
                            for v in T.unroll(vectors):
                                at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                                total[p, at] = dot(
                                    total[p, at],
                                    weight[tile, i, T.ramp((part * outputs + v * lanes) * 4, 1, 4 * lanes)],
                                    _four_codes(codes, first + p // PLANES, p % PLANES, 4 * i, lanes),
                                )
                    for t in T.unroll(group):
                        for v in T.unroll(vectors):
                            at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                            output = T.meta_var(part * outputs + v * lanes)
                            high = T.meta_var(T.Cast(typed("float32", lanes), total[PLANES * t, at]))
                            low = T.meta_var(T.Cast(typed("float32", lanes), total[PLANES * t + 1, at]))
                            y[first + t, T.ramp(tile * TILE + output, 1, lanes)] = (
                                (high * 128.0 + low)
                                * wide(scales[first + t], lanes)
                                * weight_scales[tile, T.ramp(output, 1, lanes)]
                            )

    return kernel


def dense_int8g_dot(
    rows: int, cols: int, tiles: int, *, intrinsic: str, unsigned: bool, outputs: int, lanes: int
) -> PrimFunc:
    """y = W x for int8g codes with byte dot products; ``cols`` a multiple of 4.

    weights (tiles, cols / 4, 128) bytes, each code + 128: the unsigned side of an instruction that has one, undone by
    the sums of the groups' codes; else their signs are flipped. Codes of x are signed.
    """
    group, groups, quads, vectors = tokens_at_once(rows), wide_groups(cols), cols // QUAD, outputs // lanes
    of_group = WIDE_GROUP // QUAD
    size, ahead = tiles * TILE * cols, AHEAD // (QUAD * TILE)
    dot = _dot(intrinsic, False, lanes)  # weights first

    def as_multiplied(quad: Any) -> Any:
        return quad if unsigned else quad ^ T.broadcast(T.int8(-128), 4 * lanes)

    @T.inline
    def add_group(codes, sums, weight, weight_scales, total, tile, first, part, g, count):
        held = T.alloc_buffer((group * PLANES, outputs), "int32", scope=STACK)
        for p in T.unroll(group * PLANES):
            for v in T.unroll(vectors):
                start = T.meta_var(sums[first + p // PLANES, p % PLANES, g] if unsigned else T.int32(0))
                held[p, T.ramp(v * lanes, 1, lanes)] = wide(start, lanes)
        for i in T.serial(count):
            for n in T.unroll(-(-4 * outputs // LINE)):
                T.evaluate(fetch(weight, tile, g * of_group + i + ahead, 4 * part * outputs + n * LINE))
            for p in T.unroll(group * PLANES):
                for v in T.unroll(vectors):
                    at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                    place = T.meta_var(T.ramp((part * outputs + v * lanes) * 4, 1, 4 * lanes))
                    held[p, at] = dot(
                        held[p, at],
                        as_multiplied(weight[tile, g * of_group + i, place]),
                        _four_codes(codes, first + p // PLANES, p % PLANES, 4 * (g * of_group + i), lanes),
                    )
        for t in T.unroll(group):
            for v in T.unroll(vectors):
                at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                high = T.meta_var(T.Cast(typed("float32", lanes), held[PLANES * t, at]))
                low = T.meta_var(T.Cast(typed("float32", lanes), held[PLANES * t + 1, at]))
                scale = T.meta_var(weight_scales[tile, g, T.ramp(part * outputs + v * lanes, 1, lanes)])
                total[t, at] = total[t, at] + (high * 128.0 + low) * scale

    @T.inline
    def product(codes, scales, sums, weight, weight_scales, y):
        for tile in jobs_loop(tiles, size):
            for turn in T.serial(turns(rows, group)):
                first = T.meta_var(first_of(turn, rows, group))
                for part in T.serial(TILE // outputs):
                    total = T.alloc_buffer((group, outputs), "float32", scope=STACK)
                    clear(total, group, vectors, lanes)
                    for g in T.serial(quads // of_group):
                        add_group(codes, sums, weight, weight_scales, total, tile, first, part, g, of_group)
                    if quads % of_group != 0:
                        last = T.meta_var(groups - 1)
                        rest = T.meta_var(quads % of_group)
                        add_group(codes, sums, weight, weight_scales, total, tile, first, part, last, rest)
                    for t in T.unroll(group):
                        for v in T.unroll(vectors):
                            at = T.meta_var(T.ramp(tile * TILE + part * outputs + v * lanes, 1, lanes))
                            y[first + t, at] = total[t, T.ramp(v * lanes, 1, lanes)] * wide(scales[first + t], lanes)

    @T.prim_func(s_tir=True)
    def kernel(
        codes: T.Buffer((rows, PLANES, cols), "int8"),
        scales: T.Buffer((rows,), "float32"),
        weight: T.Buffer((tiles, quads, 4 * TILE), "int8"),
        weight_scales: T.Buffer((tiles, groups, TILE), "float32"),
        y: T.Buffer((rows, tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        product(codes, scales, codes, weight, weight_scales, y)

    @T.prim_func(s_tir=True)
    def kernel_with_sums(
        codes: T.Buffer((rows, PLANES, cols), "int8"),
        scales: T.Buffer((rows,), "float32"),
        sums: T.Buffer((rows, PLANES, groups), "int32"),
        weight: T.Buffer((tiles, quads, 4 * TILE), "int8"),
        weight_scales: T.Buffer((tiles, groups, TILE), "float32"),
        y: T.Buffer((rows, tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        product(codes, scales, sums, weight, weight_scales, y)

    return kernel_with_sums if unsigned else kernel


def dense_int4_dot(
    rows: int, cols: int, tiles: int, *, intrinsic: str, unsigned: bool, outputs: int, lanes: int
) -> PrimFunc:
    """y = W x for int4 codes with byte dot products; ``cols`` a multiple of 64.

    weights (tiles, groups, 8, 128) bytes: low halves belong to inputs 0 to 3 of eight, high halves to 4 to 7, each
    code + 8. Codes of x are signed here: the weights' are the unsigned side.
    """
    group, groups, vectors = tokens_at_once(rows), cols // GROUP, outputs // lanes
    size, ahead = tiles * TILE * cols // 2, AHEAD // (TILE * GROUP // 2)
    dot = _dot(intrinsic, False, lanes)  # weights first

    def halves(both: Any) -> tuple[Any, Any]:
        fifteen = T.broadcast(T.int8(15), 4 * lanes)
        return both & fifteen, (both >> T.broadcast(T.int8(4), 4 * lanes)) & fifteen

    @T.prim_func(s_tir=True)
    def kernel(
        codes: T.Buffer((rows, PLANES, cols), "int8"),
        scales: T.Buffer((rows,), "float32"),
        group_sums: T.Buffer((rows, PLANES, groups), "int32"),
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
                    for g in T.serial(groups):
                        of_group = T.alloc_buffer((group * PLANES, outputs), "int32", scope=STACK)
                        for p in T.unroll(group * PLANES):
                            for v in T.unroll(vectors):
                                start = T.meta_var(group_sums[first + p // PLANES, p % PLANES, g])
                                of_group[p, T.ramp(v * lanes, 1, lanes)] = wide(start, lanes)
                        for i in T.serial(GROUP // 8):
                            for n in T.unroll(-(-4 * outputs // LINE)):
                                T.evaluate(fetch(weight, tile, g + ahead, i, 4 * part * outputs + n * LINE))
                            for p in T.unroll(group * PLANES):
                                for v in T.unroll(vectors):
                                    at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                                    row = T.meta_var(first + p // PLANES)
                                    both = T.meta_var(
                                        weight[tile, g, i, T.ramp((part * outputs + v * lanes) * 4, 1, 4 * lanes)]
                                    )
                                    of_group[p, at] = dot(
                                        of_group[p, at],
                                        halves(both)[0],
                                        _four_codes(codes, row, p % PLANES, g * GROUP + 8 * i, lanes),
                                    )
                                    of_group[p, at] = dot(
                                        of_group[p, at],
                                        halves(both)[1],
                                        _four_codes(codes, row, p % PLANES, g * GROUP + 8 * i + 4, lanes),
                                    )
                        for t in T.unroll(group):
                            for v in T.unroll(vectors):
                                at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                                high = T.meta_var(T.Cast(typed("float32", lanes), of_group[PLANES * t, at]))
                                low = T.meta_var(T.Cast(typed("float32", lanes), of_group[PLANES * t + 1, at]))
                                scale = T.meta_var(weight_scales[tile, g, T.ramp(part * outputs + v * lanes, 1, lanes)])
                                total[t, at] = total[t, at] + (high * 128.0 + low) * scale
                    for t in T.unroll(group):
                        for v in T.unroll(vectors):
                            at = T.meta_var(T.ramp(tile * TILE + part * outputs + v * lanes, 1, lanes))
                            y[first + t, at] = total[t, T.ramp(v * lanes, 1, lanes)] * wide(scales[first + t], lanes)

    return kernel


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
