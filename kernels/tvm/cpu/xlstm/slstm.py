"""The sLSTM block (arXiv 2405.04517, stabilized form) and the gated feed-forward behind it."""

import math

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.convolution import kept
from lram_export.kernels.tvm.cpu.loops import STACK, jobs_loop, rows_loop
from lram_export.kernels.tvm.cpu.norms import moments
from lram_export.kernels.tvm.functions import (
    ACTIVATIONS,
    bind,
    exponential,
    hyperbolic_tangent,
    log_sigmoid,
    sigmoid,
    span,
    wide,
)
from lram_export.targets.layout import TILE, whole_tiles

INITIAL_M = -1e30


def recurrence(batch: int, tokens: int, skipped: int, heads: int, width: int, lanes: int) -> PrimFunc:
    """The tokens of a step through the sLSTM cell, one after the other; the heads are independent of each other.

    from_conv (tokens * batch, heads * 2 * width) holds gates i, f, from_input gates z, o, both before their bias;
    recurrent (heads * 4 * width / 32, width, 32) -> hidden states (tokens * batch, heads * width). The state moves on
    in place. The first ``skipped`` tokens are passed by where an episode starts. Heads may have any width: what is
    computed of one by products is filled up to whole tiles, and vectors of its channels are as long as divides it.
    """
    rows, hidden = tokens * batch, heads * width
    gates, tiles = whole_tiles(2 * width) * TILE, whole_tiles(4 * width)
    vectors, own = TILE // lanes, math.gcd(width, lanes)
    size = 4 * heads * width * 4 * width

    @T.prim_func(s_tir=True)
    def kernel(
        from_conv: T.Buffer((rows, heads * gates), "float32"),
        from_input: T.Buffer((rows, heads * gates), "float32"),
        recurrent: T.Buffer((heads * tiles, width, TILE), "float32"),
        bias: T.Buffer((heads, tiles * TILE), "float32"),
        is_first: T.Buffer((batch,), "float32"),
        y: T.Buffer((batch, hidden), "float32"),
        c: T.Buffer((batch, hidden), "float32"),
        n: T.Buffer((batch, hidden), "float32"),
        m: T.Buffer((batch, hidden), "float32"),
        h: T.Buffer((rows, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for head in jobs_loop(heads, size):
            raw = T.alloc_buffer((tiles * TILE,), "float32", scope=STACK)
            for row in T.serial(batch):
                for i in T.serial(width // own):
                    at = T.meta_var(span(head * width + i * own, own))
                    y[row, at] = kept(y[row, at], is_first[row], own)
                    c[row, at] = kept(c[row, at], is_first[row], own)
                    n[row, at] = kept(n[row, at], is_first[row], own)
                    m[row, at] = kept(m[row, at], is_first[row], own, INITIAL_M)
                for t in T.serial(tokens):
                    if t >= skipped or is_first[row] == T.float32(0):
                        for tile in T.serial(tiles):
                            total = T.alloc_buffer((TILE,), "float32", scope=STACK)
                            for r in T.unroll(vectors):
                                here = T.meta_var(T.ramp(r * lanes, 1, lanes))
                                total[here] = bias[head, T.ramp(tile * TILE + r * lanes, 1, lanes)]
                            for i in T.serial(width):
                                for r in T.unroll(vectors):
                                    here = T.meta_var(T.ramp(r * lanes, 1, lanes))
                                    weight = T.meta_var(recurrent[head * tiles + tile, i, here])
                                    total[here] = total[here] + weight * wide(y[row, head * width + i], lanes)
                            for r in T.unroll(vectors):
                                here = T.meta_var(T.ramp(r * lanes, 1, lanes))
                                raw[T.ramp(tile * TILE + r * lanes, 1, lanes)] = total[here]
                        for i in T.serial(width // own):
                            at = T.meta_var(span(head * width + i * own, own))
                            token = T.meta_var(tokens * row + t)
                            first = T.meta_var(span(head * gates + i * own, own))
                            second = T.meta_var(span(head * gates + width + i * own, own))
                            entering = T.bind(from_conv[token, first] + raw[span(i * own, own)])
                            forget = T.bind(from_conv[token, second] + raw[span(width + i * own, own)])
                            z = T.bind(from_input[token, first] + raw[span(2 * width + i * own, own)])
                            o = T.bind(from_input[token, second] + raw[span(3 * width + i * own, own)])
                            decayed = T.bind(log_sigmoid(forget) + m[row, at])
                            top = T.bind(T.max(entering, decayed))
                            entering_gate = T.bind(exponential(entering - top))
                            forget_gate = T.bind(exponential(decayed - top))
                            m[row, at] = top
                            c[row, at] = forget_gate * c[row, at] + entering_gate * hyperbolic_tangent(z)
                            n[row, at] = forget_gate * n[row, at] + entering_gate
                            y[row, at] = sigmoid(o) * c[row, at] / n[row, at]
                    for i in T.serial(width // own):
                        at = T.meta_var(span(head * width + i * own, own))
                        h[tokens * row + t, at] = y[row, at]

    return kernel


def head_norm(rows: int, heads: int, width: int, epsilon: float, lanes: int) -> PrimFunc:
    """Group norm with one group per head: x (rows, heads * width), weight (heads * width) -> y.

    Heads may have any width: their vectors are as long as divides it.
    """
    lanes = math.gcd(width, lanes)

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, heads * width), "float32"),
        weight: T.Buffer((heads * width,), "float32"),
        y: T.Buffer((rows, heads * width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(rows, width):
            for head in T.serial(heads):
                found = T.alloc_buffer((2,), "float32", scope=STACK)
                moments(x, row, head * width, width, epsilon, lanes, found)
                for i in T.serial(width // lanes):
                    at = T.meta_var(span(head * width + i * lanes, lanes))
                    y[row, at] = (x[row, at] - wide(found[0], lanes)) * wide(found[1], lanes) * weight[at]

    return kernel


def gated(rows: int, size: int, up_width: int, activation: str, lanes: int) -> PrimFunc:
    """activation(gate) * value; both in one buffer (rows, up_width), the gate first -> (rows, size)."""
    function = ACTIVATIONS[activation]
    lanes = math.gcd(size, lanes)

    @T.prim_func(s_tir=True)
    def kernel(up: T.Buffer((rows, up_width), "float32"), y: T.Buffer((rows, size), "float32")):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(rows, 2 * size):
            for i in T.serial(size // lanes):
                gate = T.meta_var(up[row, span(i * lanes, lanes)])
                value = T.meta_var(up[row, span(size + i * lanes, lanes)])
                y[row, span(i * lanes, lanes)] = bind(gate, function) * value

    return kernel
