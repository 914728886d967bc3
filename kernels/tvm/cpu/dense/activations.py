"""Codes of activations, in two planes."""

import math
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.loops import STACK, rows_loop
from lram_export.kernels.tvm.functions import lane_max, magnitude, span, typed, wide
from lram_export.spec.precision import GROUP

PLANES = 2
"""Planes of codes of an activation: x = scale * (128 * high + low), about 15 bits."""
LARGEST = 16256.0
"""128 * 127: the largest activation in two planes of codes."""


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
