"""What lies between the products of a Decision Transformer's block."""

import math

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.loops import STACK, jobs_loop, rows_loop
from lram_export.kernels.tvm.cpu.norms import moments
from lram_export.kernels.tvm.functions import ACTIVATIONS, bind, span, wide


def add_norm(rows: int, width: int, addend_width: int, epsilon: float, lanes: int) -> PrimFunc:
    """x += addend + bias in place, and the norm of that: addend (rows, addend_width), x and y (rows, width)."""
    lanes = math.gcd(width, lanes)

    @T.prim_func(s_tir=True)
    def kernel(
        addend: T.Buffer((rows, addend_width), "float32"),
        bias: T.Buffer((width,), "float32"),
        norm_weight: T.Buffer((width,), "float32"),
        norm_bias: T.Buffer((width,), "float32"),
        x: T.Buffer((rows, width), "float32"),
        y: T.Buffer((rows, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(rows, 2 * width):
            found = T.alloc_buffer((2,), "float32", scope=STACK)
            for i in T.serial(width // lanes):
                at = T.meta_var(span(i * lanes, lanes))
                x[row, at] = x[row, at] + addend[row, at] + bias[at]
            moments(x, row, 0, width, epsilon, lanes, found)
            for i in T.serial(width // lanes):
                at = T.meta_var(span(i * lanes, lanes))
                centred = T.meta_var(x[row, at] - wide(found[0], lanes))
                y[row, at] = centred * wide(found[1], lanes) * norm_weight[at] + norm_bias[at]

    return kernel


def activate(rows: int, size: int, width: int, activation: str, lanes: int) -> PrimFunc:
    """activation(x + bias): the first ``size`` columns of x (rows, width) -> (rows, size)."""
    function, lanes = ACTIVATIONS[activation], math.gcd(size, lanes)
    vectors = size // lanes
    # a vector takes as long as reading several
    read = 32 * rows * size

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, width), "float32"), bias: T.Buffer((size,), "float32"), y: T.Buffer((rows, size), "float32")
    ):
        T.func_attr({"tirx.noalias": True})
        for job in jobs_loop(rows * vectors, read):
            row = T.meta_var(job // vectors)
            at = T.meta_var(span(job % vectors * lanes, lanes))
            y[row, at] = bind(x[row, at] + bias[at], function)

    return kernel
