"""Which tokens go through the blocks of a Decision Transformer, and their positions."""

import math

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.loops import STACK, jobs_loop, rows_loop
from lram_export.kernels.tvm.functions import span, wide


def add_positions(batch: int, tokens: int, hidden: int, lanes: int) -> PrimFunc:
    """x (tokens * batch, hidden) += positions (tokens, hidden), in place."""
    lanes = math.gcd(hidden, lanes)

    @T.prim_func(s_tir=True)
    def kernel(
        positions: T.Buffer((tokens, hidden), "float32"),
        x: T.Buffer((tokens * batch, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(batch, tokens * hidden):
            for t in T.unroll(tokens):
                for i in T.serial(hidden // lanes):
                    at = T.meta_var(span(i * lanes, lanes))
                    x[tokens * row + t, at] = x[tokens * row + t, at] + positions[t, at]

    return kernel


def slide(batch: int, tokens: int, skipped: int, window: int, hidden: int, lanes: int) -> PrimFunc:
    """The window (batch * window, hidden): the tokens of former steps, those of the step behind them, and positions.

    ``former`` (batch, window - tokens, hidden) moves on in place, by a step. An episode starts with ``start``, and with
    those of padding in place of the first ``skipped`` tokens of x (tokens * batch, hidden).
    """
    lanes, kept = math.gcd(hidden, lanes), window - tokens
    vectors = hidden // lanes

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((tokens * batch, hidden), "float32"),
        is_first: T.Buffer((batch,), "float32"),
        positions: T.Buffer((window, hidden), "float32"),
        start: T.Buffer((kept, hidden), "float32"),
        padding: T.Buffer((skipped, hidden), "float32"),
        former: T.Buffer((batch, kept, hidden), "float32"),
        y: T.Buffer((batch * window, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for job in jobs_loop(batch * vectors, 16 * batch * window * hidden):
            row = T.meta_var(job // vectors)
            at = T.meta_var(span(job % vectors * lanes, lanes))
            starts = T.meta_var(wide(is_first[row] > T.float32(0), lanes))
            for n in T.serial(kept):
                value = T.bind(T.Select(starts, start[n, at], former[row, n, at]))
                y[window * row + n, at] = value + positions[n, at]
                if n >= tokens:
                    former[row, n - tokens, at] = value
            newest = T.alloc_buffer((tokens, lanes), "float32", scope=STACK)
            every = T.meta_var(span(0, lanes))
            for t in T.unroll(skipped):
                newest[t, every] = T.Select(starts, padding[t, at], x[tokens * row + t, at])
            for t in T.unroll(tokens - skipped):
                newest[skipped + t, every] = x[tokens * row + skipped + t, at]
            for t in T.unroll(tokens):
                y[window * row + kept + t, at] = newest[t, every] + positions[kept + t, at]
                if kept + t >= tokens:
                    former[row, kept + t - tokens, at] = newest[t, every]

    return kernel
