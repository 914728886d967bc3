"""Norms, and the sums before and behind them. Rows may have any width: vectors are as long as divides it."""

import math

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.loops import STACK, rows_loop
from lram_export.kernels.tvm.functions import lane_sum, span, wide


@T.inline
def moments(x, row, start, width, epsilon, lanes, found):
    """Mean and reciprocal deviation of ``x[row, start : start + width]`` into ``found``."""
    total = T.alloc_buffer((lanes,), "float32", scope=STACK)
    total[span(0, lanes)] = wide(T.float32(0), lanes)
    for i in T.serial(width // lanes):
        total[span(0, lanes)] = total[span(0, lanes)] + x[row, span(start + i * lanes, lanes)]
    found[0] = lane_sum(total[span(0, lanes)]) / T.float32(width)
    total[span(0, lanes)] = wide(T.float32(0), lanes)
    for i in T.serial(width // lanes):
        difference = T.bind(x[row, span(start + i * lanes, lanes)] - wide(found[0], lanes))
        total[span(0, lanes)] = total[span(0, lanes)] + difference * difference
    found[1] = T.float32(1) / T.sqrt(lane_sum(total[span(0, lanes)]) / T.float32(width) + T.float32(epsilon))


def layer_norm(rows: int, width: int, epsilon: float, lanes: int, every: int = 1, place: int = 0) -> PrimFunc:
    """Norm of one row of every ``every``, the one at ``place``: x (rows * every, width), weight (width) -> y."""
    lanes = math.gcd(width, lanes)

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows * every, width), "float32"),
        weight: T.Buffer((width,), "float32"),
        y: T.Buffer((rows, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(rows, width):
            found = T.alloc_buffer((2,), "float32", scope=STACK)
            moments(x, row * every + place, 0, width, epsilon, lanes, found)
            for i in T.serial(width // lanes):
                at = T.meta_var(span(i * lanes, lanes))
                centred = T.meta_var(x[row * every + place, at] - wide(found[0], lanes))
                y[row, at] = centred * wide(found[1], lanes) * weight[at]

    return kernel


def rms_norm(rows: int, width: int, epsilon: float, lanes: int, every: int = 1, place: int = 0) -> PrimFunc:
    """Root mean square norm of the rows that :func:`layer_norm` takes."""
    lanes = math.gcd(width, lanes)

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows * every, width), "float32"),
        weight: T.Buffer((width,), "float32"),
        y: T.Buffer((rows, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(rows, width):
            total = T.alloc_buffer((lanes,), "float32", scope=STACK)
            total[span(0, lanes)] = wide(T.float32(0), lanes)
            for i in T.serial(width // lanes):
                value = T.bind(x[row * every + place, span(i * lanes, lanes)])
                total[span(0, lanes)] = total[span(0, lanes)] + value * value
            mean = T.meta_var(lane_sum(total[span(0, lanes)]) / T.float32(width))
            factor = T.bind(T.float32(1) / T.sqrt(mean + T.float32(epsilon)))
            for i in T.serial(width // lanes):
                at = T.meta_var(span(i * lanes, lanes))
                y[row, at] = x[row * every + place, at] * wide(factor, lanes) * weight[at]

    return kernel


def add_bias(rows: int, width: int, x_width: int, lanes: int) -> PrimFunc:
    """Sum in place: bias (width), x (rows, x_width): x[:, :width] += bias."""
    lanes = math.gcd(width, lanes)

    @T.prim_func(s_tir=True)
    def kernel(bias: T.Buffer((width,), "float32"), x: T.Buffer((rows, x_width), "float32")):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(rows, width):
            for i in T.serial(width // lanes):
                at = T.meta_var(span(i * lanes, lanes))
                x[row, at] = x[row, at] + bias[at]

    return kernel


def add(rows: int, width: int, addend_width: int, lanes: int) -> PrimFunc:
    """Residual sum in place: addend (rows, addend_width), x (rows, width) += addend[:, :width]."""
    lanes = math.gcd(width, lanes)

    @T.prim_func(s_tir=True)
    def kernel(addend: T.Buffer((rows, addend_width), "float32"), x: T.Buffer((rows, width), "float32")):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(rows, width):
            for i in T.serial(width // lanes):
                at = T.meta_var(span(i * lanes, lanes))
                x[row, at] = x[row, at] + addend[row, at]

    return kernel
