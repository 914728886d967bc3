"""What embeds the tokens of a step, each kernel one of them: of the ``tokens`` of every row the one at ``place``; and
tokens, or columns of them, by themselves."""

import math

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.loops import STACK, rows_loop
from lram_export.kernels.tvm.cpu.norms import moments
from lram_export.kernels.tvm.functions import relu, span, wide


@T.inline
def normalize(x, row, hidden, epsilon, norm_weight, norm_bias, lanes):
    """Layer norm of a row, in place."""
    found = T.alloc_buffer((2,), "float32", scope=STACK)
    moments(x, row, 0, hidden, epsilon, lanes, found)
    for i in T.serial(hidden // lanes):
        at = T.meta_var(span(i * lanes, lanes))
        centred = T.meta_var(x[row, at] - wide(found[0], lanes))
        x[row, at] = centred * wide(found[1], lanes) * norm_weight[at] + norm_bias[at]


def embed_number(batch: int, tokens: int, place: int, hidden: int, epsilon: float, lanes: int) -> PrimFunc:
    """The norm of weight * number + bias, into x (tokens * batch, hidden)."""
    lanes = math.gcd(hidden, lanes)

    @T.prim_func(s_tir=True)
    def kernel(
        number: T.Buffer((batch,), "float32"),
        weight: T.Buffer((hidden,), "float32"),
        bias: T.Buffer((hidden,), "float32"),
        norm_weight: T.Buffer((hidden,), "float32"),
        norm_bias: T.Buffer((hidden,), "float32"),
        x: T.Buffer((tokens * batch, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(batch, hidden):
            for i in T.serial(hidden // lanes):
                at = T.meta_var(span(i * lanes, lanes))
                x[tokens * row + place, at] = weight[at] * wide(number[row], lanes) + bias[at]
            normalize(x, tokens * row + place, hidden, epsilon, norm_weight, norm_bias, lanes)

    return kernel


def embed_vector(
    batch: int, tokens: int, place: int, hidden: int, width: int, rectify: bool, epsilon: float, lanes: int
) -> PrimFunc:
    """The norm of product + bias, with a ReLU before it if ``rectify``, into x (tokens * batch, hidden).

    ``product`` (batch, width) is an encoded input before its bias.
    """
    lanes = math.gcd(hidden, lanes)
    activation = relu if rectify else (lambda value: value)

    @T.prim_func(s_tir=True)
    def kernel(
        product: T.Buffer((batch, width), "float32"),
        bias: T.Buffer((hidden,), "float32"),
        norm_weight: T.Buffer((hidden,), "float32"),
        norm_bias: T.Buffer((hidden,), "float32"),
        x: T.Buffer((tokens * batch, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(batch, hidden):
            for i in T.serial(hidden // lanes):
                at = T.meta_var(span(i * lanes, lanes))
                x[tokens * row + place, at] = activation(product[row, at] + bias[at])
            normalize(x, tokens * row + place, hidden, epsilon, norm_weight, norm_bias, lanes)

    return kernel


def embed_constant(batch: int, tokens: int, place: int, hidden: int, lanes: int) -> PrimFunc:
    """A token (hidden) that is the same at every step, into x (tokens * batch, hidden)."""
    lanes = math.gcd(hidden, lanes)

    @T.prim_func(s_tir=True)
    def kernel(token: T.Buffer((hidden,), "float32"), x: T.Buffer((tokens * batch, hidden), "float32")):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(batch, hidden):
            for i in T.serial(hidden // lanes):
                at = T.meta_var(span(i * lanes, lanes))
                x[tokens * row + place, at] = token[at]

    return kernel


def pick(batch: int, tokens: int, place: int, width: int, lanes: int) -> PrimFunc:
    """Of the ``tokens`` of every row the one at ``place``: x (tokens * batch, width) -> y (batch, width)."""
    lanes = math.gcd(width, lanes)

    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((tokens * batch, width), "float32"), y: T.Buffer((batch, width), "float32")):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(batch, width):
            for i in T.serial(width // lanes):
                at = T.meta_var(span(i * lanes, lanes))
                y[row, at] = x[tokens * row + place, at]

    return kernel


def narrow(rows: int, width: int, columns: int, lanes: int) -> PrimFunc:
    """The first ``columns`` of x (rows, width), as an input of a product."""
    lanes = math.gcd(columns, lanes)

    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((rows, width), "float32"), y: T.Buffer((rows, columns), "float32")):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(rows, columns):
            for i in T.serial(columns // lanes):
                y[row, span(i * lanes, lanes)] = x[row, span(i * lanes, lanes)]

    return kernel
