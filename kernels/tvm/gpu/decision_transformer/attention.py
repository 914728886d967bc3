"""Attention of a Decision Transformer for a GPU, see `kernels/tvm/cpu/decision_transformer/attention.py`."""

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.decision_transformer.attention import (
    NEVER,
    QUERIES,
    Vectors,
    following_step,
    of_rows,
    oldest_step,
)
from lram_export.kernels.tvm.functions import exponential
from lram_export.kernels.tvm.gpu.threads import THREADS, blocks, shared, threads


def either(of_past: Callable[[Any, Any], Any], past: int, of_step: Vectors) -> Vectors:
    """Keys or values of former steps, then those of the step."""
    return lambda token, column: T.if_then_else(token < past, of_past(token, column), of_step(token - past, column))


def kept_or_initial(ring: Any, initial: Any, row: Any, head: Any, is_first: Any) -> Vectors:
    """Keys or values of a head; those that an episode starts with, where one does."""
    return lambda token, column: T.if_then_else(
        is_first[row] > T.float32(0), initial[head, token, column], ring[row, head, token, column]
    )


def up_to(place: Any, limited: Any = True) -> Callable[[Any, Any], Any]:
    """Whether a token sees a key: where that is ``limited``, up to ``place`` and as many more as tokens before it."""
    return lambda token, key: key <= place + token if limited is True else T.Or(T.Not(limited), key <= place + token)


def stores(seen: Any, row: Any, start: Any) -> Callable[[Any, Any, Any], None]:
    """A function that stores what a token sees, (token, column, value)."""
    return lambda token, column, value: T.buffer_store(seen, value, [row + token, start + column])


def _attend(tokens: int, width: int, count: int) -> Any:
    """Attention of some tokens to ``count`` keys, by a block: a thread per key, then per column of values."""
    scale = width**-0.5

    @T.inline
    def attend(query, key, value, sees, store):
        weights = T.alloc_buffer((tokens, count), "float32", scope=shared())
        largest = T.alloc_buffer((tokens,), "float32", scope=shared())
        inverse = T.alloc_buffer((tokens,), "float32", scope=shared())
        for thread in threads():
            for r in T.serial((count + THREADS - 1) // THREADS):
                n = T.meta_var(r * THREADS + thread)
                if r * THREADS + thread < count:
                    product = T.alloc_buffer((tokens,), "float32", scope="local")
                    for t in T.unroll(tokens):
                        product[t] = T.float32(0)
                    for i in T.serial(width):
                        of_key = T.bind(key(n, i))
                        for t in T.unroll(tokens):
                            product[t] = product[t] + query(t, i) * of_key
                    for t in T.unroll(tokens):
                        weights[t, n] = T.Select(sees(t, n), product[t] * T.float32(scale), T.float32(NEVER))
        for thread in threads():
            if thread < tokens:
                most = T.alloc_buffer((1,), "float32", scope="local")
                most[0] = weights[thread, 0]
                for n in T.serial(count - 1):
                    most[0] = T.max(most[0], weights[thread, n + 1])
                largest[thread] = most[0]
        for thread in threads():
            for r in T.serial((tokens * count + THREADS - 1) // THREADS):
                t = T.meta_var((r * THREADS + thread) // count)
                n = T.meta_var((r * THREADS + thread) % count)
                if r * THREADS + thread < tokens * count:
                    weights[t, n] = exponential(weights[t, n] - largest[t])
        for thread in threads():
            if thread < tokens:
                total = T.alloc_buffer((1,), "float32", scope="local")
                total[0] = T.float32(0)
                for n in T.serial(count):
                    total[0] = total[0] + weights[thread, n]
                inverse[thread] = T.float32(1) / total[0]
        for thread in threads():
            for r in T.serial((width + THREADS - 1) // THREADS):
                column = T.meta_var(r * THREADS + thread)
                if r * THREADS + thread < width:
                    total = T.alloc_buffer((tokens,), "float32", scope="local")
                    for t in T.unroll(tokens):
                        total[t] = T.float32(0)
                    for n in T.serial(count):
                        of_value = T.bind(value(n, column))
                        for t in T.unroll(tokens):
                            total[t] = total[t] + weights[t, n] * of_value
                    for t in T.unroll(tokens):
                        store(t, column, total[t] * inverse[t])

    return attend


def cached_attention(
    batch: int, tokens: int, heads: int, width: int, past: int, projected_width: int, lanes: int
) -> PrimFunc:
    """See `cpu/decision_transformer/attention.py`: a block per row and head, and one that moves the index on."""
    rows, hidden, steps = tokens * batch, heads * width, past // tokens
    attend = _attend(tokens, width, past + tokens)

    @T.inline
    def overwrite(ring, initial, row, head, is_first, index, of_step):
        """A thread per column, as behind the weights: what it overwrites no other one reads any more."""
        for thread in threads():
            for r in T.serial((width + THREADS - 1) // THREADS):
                column = T.meta_var(r * THREADS + thread)
                if r * THREADS + thread < width:
                    if is_first[row] > T.float32(0):
                        for n in T.serial(past):
                            ring[row, head, n, column] = initial[head, n, column]
                    for t in T.unroll(tokens):
                        place = T.meta_var(oldest_step(index[row], is_first[row], steps) * tokens + t)
                        ring[row, head, place, column] = of_step(t, column)

    @T.prim_func(s_tir=True)
    def kernel(
        projected: T.Buffer((rows, projected_width), "float32"),
        initial_keys: T.Buffer((heads, past, width), "float32"),
        initial_values: T.Buffer((heads, past, width), "float32"),
        is_first: T.Buffer((batch,), "float32"),
        keys: T.Buffer((batch, heads, past, width), "float32"),
        values: T.Buffer((batch, heads, past, width), "float32"),
        index: T.Buffer((batch,), "float32"),
        seen: T.Buffer((rows, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(batch * heads):
            row = T.meta_var(block // heads)
            head = T.meta_var(block % heads)
            start = T.meta_var(block % heads * width)
            new_key = T.meta_var(of_rows(projected, tokens * row, hidden + start, 1))
            new_value = T.meta_var(of_rows(projected, tokens * row, 2 * hidden + start, 1))
            attend(
                of_rows(projected, tokens * row, start, 1),
                either(kept_or_initial(keys, initial_keys, row, head, is_first), past, new_key),
                either(kept_or_initial(values, initial_values, row, head, is_first), past, new_value),
                up_to(past, is_first[row] > T.float32(0)),
                stores(seen, tokens * row, start),
            )
            overwrite(keys, initial_keys, row, head, is_first, index, new_key)
            overwrite(values, initial_values, row, head, is_first, index, new_value)
        for block in blocks((batch + THREADS - 1) // THREADS):
            for thread in threads():
                row = T.meta_var(block * THREADS + thread)
                if block * THREADS + thread < batch:
                    index[row] = following_step(oldest_step(index[row], is_first[row], steps), steps)

    return kernel


def window_attention(
    batch: int, tokens: int, heads: int, width: int, projected_width: int, only_last: bool, lanes: int
) -> PrimFunc:
    """See `cpu/decision_transformer/attention.py`: a block per row, head and group of queries."""
    hidden, group = heads * width, 1 if only_last else min(QUERIES, tokens)
    groups, out_rows = (1, 1) if only_last else (-(-tokens // group), tokens)
    attend = _attend(group, width, tokens)

    @T.prim_func(s_tir=True)
    def kernel(
        projected: T.Buffer((batch * tokens, projected_width), "float32"),
        seen: T.Buffer((batch * out_rows, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(batch * heads * groups):
            row = T.meta_var(block // (heads * groups))
            start = T.meta_var(block // groups % heads * width)
            # the last group may begin before the one before it ends
            place = T.meta_var(tokens - 1 if only_last else T.min(block % groups * group, tokens - group))
            attend(
                of_rows(projected, tokens * row + place, start, 1),
                of_rows(projected, tokens * row, hidden + start, 1),
                of_rows(projected, tokens * row, 2 * hidden + start, 1),
                up_to(place),
                stores(seen, row if only_last else tokens * row + place, start),
            )

    return kernel
