"""Tokens of a Decision Transformer and positions for a GPU, see `kernels/tvm/cpu`: a thread per row and column."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.gpu.threads import THREADS, blocks, threads


def add_positions(batch: int, tokens: int, hidden: int, lanes: int) -> PrimFunc:
    """See `cpu/decision_transformer/positions.py`."""

    @T.prim_func(s_tir=True)
    def kernel(
        positions: T.Buffer((tokens, hidden), "float32"),
        x: T.Buffer((tokens * batch, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks((batch * hidden + THREADS - 1) // THREADS):
            for thread in threads():
                job = T.meta_var(block * THREADS + thread)
                row = T.meta_var(job // hidden)
                at = T.meta_var(job % hidden)
                if block * THREADS + thread < batch * hidden:
                    for t in T.unroll(tokens):
                        x[tokens * row + t, at] = x[tokens * row + t, at] + positions[t, at]

    return kernel


def slide(batch: int, tokens: int, skipped: int, window: int, hidden: int, lanes: int) -> PrimFunc:
    """See `cpu/decision_transformer/positions.py`."""
    kept = window - tokens

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
        for block in blocks((batch * hidden + THREADS - 1) // THREADS):
            for thread in threads():
                job = T.meta_var(block * THREADS + thread)
                row = T.meta_var(job // hidden)
                at = T.meta_var(job % hidden)
                if block * THREADS + thread < batch * hidden:
                    value = T.alloc_buffer((1,), "float32", scope="local")
                    newest = T.alloc_buffer((tokens,), "float32", scope="local")
                    for n in T.serial(kept):
                        value[0] = T.Select(is_first[row] > T.float32(0), start[n, at], former[row, n, at])
                        y[window * row + n, at] = value[0] + positions[n, at]
                        if n >= tokens:
                            former[row, n - tokens, at] = value[0]
                    for t in T.unroll(skipped):
                        of_step = T.meta_var(x[tokens * row + t, at])
                        newest[t] = T.Select(is_first[row] > T.float32(0), padding[t, at], of_step)
                    for t in T.unroll(tokens - skipped):
                        newest[skipped + t] = x[tokens * row + skipped + t, at]
                    for t in T.unroll(tokens):
                        y[window * row + kept + t, at] = newest[t] + positions[kept + t, at]
                        if kept + t >= tokens:
                            former[row, kept + t - tokens, at] = newest[t]

    return kernel
