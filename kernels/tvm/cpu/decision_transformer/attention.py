"""Attention of a Decision Transformer. Formula: `lram_export/backbones/decision_transformer/step.py`.

A job is a head of a row. Keys and values are read once for all tokens of a group. Heads may have any width: vectors of
their columns are as long as divides it.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.loops import STACK, jobs_loop
from lram_export.kernels.tvm.functions import exponential, lane_max, lane_sum, span, wide

NEVER = -1e30
"""Score of a key that a token does not see."""
QUERIES = 3
"""Tokens of a window for which a key is read at once."""
MOST_VECTORS = 4
"""Vectors of values that are summed up at once, of every token."""

Vectors = Callable[[Any, Any], Any]
"""(token, column of the head) -> the vector that begins there."""


def of_rows(matrix: Any, first: Any, start: Any, lanes: int) -> Vectors:
    """Rows of a matrix from ``first`` on, columns from ``start`` on."""
    return lambda token, column: matrix[first + token, span(start + column, lanes)]


def of_head(ring: Any, row: Any, head: Any, lanes: int) -> Vectors:
    """Keys or values of a head, (batch, heads, tokens, width)."""
    return lambda token, column: ring[row, head, token, span(column, lanes)]


def oldest_step(index: Any, is_first: Any, steps: int) -> Any:
    """The step of a ring that is overwritten; a number that a state was spoiled with points nowhere else."""
    place = T.min(T.max(T.Cast("int32", index), 0), steps - 1)
    return T.Select(is_first > T.float32(0), T.int32(0), place)


def following_step(oldest: Any, steps: int) -> Any:
    """What is overwritten at the next step."""
    return T.Cast("float32", T.Select(oldest == steps - 1, T.int32(0), oldest + 1))


def _parts(tokens: int, width: int, room: int, lanes: int) -> SimpleNamespace:
    """What attention of some tokens is made of; scores are (tokens, room)."""
    score_lanes, lanes = lanes, math.gcd(width, lanes)
    vectors = width // lanes
    together = next(count for count in range(MOST_VECTORS, 0, -1) if vectors % count == 0)
    scale = width**-0.5

    @T.inline
    def clear(total, vectors):
        for t in T.unroll(tokens):
            for v in T.unroll(vectors):
                total[t, span(v * lanes, lanes)] = wide(T.float32(0), lanes)

    @T.inline
    def score(query, key, scores, start, count):
        """Scores of the tokens with ``count`` keys, from the place ``start`` on."""
        for n in T.serial(count):
            total = T.alloc_buffer((tokens, lanes), "float32", scope=STACK)
            clear(total, 1)
            for i in T.unroll(vectors) if vectors <= 8 else T.serial(vectors):
                of_key = T.bind(key(n, i * lanes))
                for t in T.unroll(tokens):
                    total[t, span(0, lanes)] = total[t, span(0, lanes)] + query(t, i * lanes) * of_key
            for t in T.unroll(tokens):
                scores[t, start + n] = lane_sum(total[t, span(0, lanes)]) * T.float32(scale)

    @T.inline
    def soften(scores, count, inverse):
        """Scores of ``count`` keys become weights, which ``inverse`` makes add up to 1."""
        every = T.meta_var(span(0, score_lanes))
        steps = T.meta_var((count + score_lanes - 1) // score_lanes)
        for t in T.unroll(tokens):
            for n in T.serial(steps * score_lanes - count):
                scores[t, count + n] = T.float32(NEVER)
            most = T.alloc_buffer((score_lanes,), "float32", scope=STACK)
            most[every] = scores[t, every]
            for i in T.serial(steps):
                most[every] = T.max(most[every], scores[t, span(i * score_lanes, score_lanes)])
            largest = T.bind(lane_max(most[every]))
            total = T.alloc_buffer((score_lanes,), "float32", scope=STACK)
            total[every] = wide(T.float32(0), score_lanes)
            for i in T.serial(steps):
                at = T.meta_var(span(i * score_lanes, score_lanes))
                scores[t, at] = exponential(scores[t, at] - wide(largest, score_lanes))
                total[every] = total[every] + scores[t, at]
            inverse[t] = T.float32(1) / lane_sum(total[every])

    @T.inline
    def collect(value, weights, start, count, first, total):
        """Adds ``count`` values, whose weights begin at ``start``: a few vectors of them from column ``first`` on."""
        for n in T.serial(count):
            for v in T.unroll(together):
                of_value = T.bind(value(n, first + v * lanes))
                for t in T.unroll(tokens):
                    at = T.meta_var(span(v * lanes, lanes))
                    total[t, at] = total[t, at] + wide(weights[t, start + n], lanes) * of_value

    @T.inline
    def store(total, inverse, y, row, first):
        for t in T.unroll(tokens):
            for v in T.unroll(together):
                y[row + t, span(first + v * lanes, lanes)] = total[t, span(v * lanes, lanes)] * wide(inverse[t], lanes)

    return SimpleNamespace(
        clear=clear,
        score=score,
        soften=soften,
        collect=collect,
        store=store,
        lanes=lanes,
        vectors=vectors,
        together=together,
        room=-(-room // score_lanes) * score_lanes,
    )


def cached_attention(
    batch: int, tokens: int, heads: int, width: int, past: int, projected_width: int, lanes: int
) -> PrimFunc:
    """The tokens of a step see a ring of the keys and values of former steps, and one another: in both directions, but
    where an episode starts, which begins with a ring of its own.

    Queries, keys and values lie one behind the other in projected (tokens * batch, projected_width); keys and values
    (batch, heads, past, width) take in those of the step in place of the oldest, and index (batch) moves on. seen
    (tokens * batch, heads * width) are the sums of values.
    """
    rows, hidden, steps = tokens * batch, heads * width, past // tokens
    parts = _parts(tokens, width, past + tokens, lanes)
    lanes, vectors, together = parts.lanes, parts.vectors, parts.together
    clear, score, soften, collect, store = parts.clear, parts.score, parts.soften, parts.collect, parts.store

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
        for job in jobs_loop(batch * heads, 8 * batch * hidden * past):
            row = T.meta_var(job // heads)
            head = T.meta_var(job % heads)
            scores = T.alloc_buffer((tokens, parts.room), "float32", scope=STACK)
            inverse = T.alloc_buffer((tokens,), "float32", scope=STACK)
            if is_first[row] > T.float32(0):
                for n in T.serial(past):
                    for i in T.serial(vectors):
                        at = T.meta_var(span(i * lanes, lanes))
                        keys[row, head, n, at] = initial_keys[head, n, at]
                        values[row, head, n, at] = initial_values[head, n, at]
            query = T.meta_var(of_rows(projected, tokens * row, head * width, lanes))
            new_key = T.meta_var(of_rows(projected, tokens * row, hidden + head * width, lanes))
            new_value = T.meta_var(of_rows(projected, tokens * row, 2 * hidden + head * width, lanes))
            score(query, of_head(keys, row, head, lanes), scores, 0, past)
            score(query, new_key, scores, past, tokens)
            if is_first[row] > T.float32(0):
                for t in T.unroll(tokens):
                    for j in T.unroll(tokens):
                        if j > t:
                            scores[t, past + j] = T.float32(NEVER)
            soften(scores, past + tokens, inverse)
            for part in T.serial(vectors // together):
                total = T.alloc_buffer((tokens, together * lanes), "float32", scope=STACK)
                clear(total, together)
                first = T.meta_var(part * together * lanes)
                collect(of_head(values, row, head, lanes), scores, 0, past, first, total)
                collect(new_value, scores, past, tokens, first, total)
                store(total, inverse, seen, tokens * row, head * width + first)
            oldest = T.bind(oldest_step(index[row], is_first[row], steps))
            for t in T.unroll(tokens):
                for i in T.serial(vectors):
                    keys[row, head, oldest * tokens + t, span(i * lanes, lanes)] = new_key(t, i * lanes)
                    values[row, head, oldest * tokens + t, span(i * lanes, lanes)] = new_value(t, i * lanes)
        for row in T.serial(batch):
            index[row] = following_step(oldest_step(index[row], is_first[row], steps), steps)

    return kernel


def window_attention(
    batch: int, tokens: int, heads: int, width: int, projected_width: int, only_last: bool, lanes: int
) -> PrimFunc:
    """Every token of a window sees itself and those before it: projected (batch * tokens, projected_width), as above,
    -> seen (batch * tokens, heads * width); of the last token alone, (batch, heads * width), if ``only_last``."""
    hidden, group = heads * width, 1 if only_last else min(QUERIES, tokens)
    groups, out_rows = (1, 1) if only_last else (-(-tokens // group), tokens)
    parts = _parts(group, width, tokens, lanes)
    lanes, vectors, together = parts.lanes, parts.vectors, parts.together
    clear, score, soften, collect, store = parts.clear, parts.score, parts.soften, parts.collect, parts.store

    @T.prim_func(s_tir=True)
    def kernel(
        projected: T.Buffer((batch * tokens, projected_width), "float32"),
        seen: T.Buffer((batch * out_rows, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for job in jobs_loop(batch * heads, 12 * batch * tokens * hidden):
            row = T.meta_var(job // heads)
            head = T.meta_var(job % heads)
            scores = T.alloc_buffer((group, parts.room), "float32", scope=STACK)
            inverse = T.alloc_buffer((group,), "float32", scope=STACK)
            # side by side: in the projection they are far apart
            copied = T.alloc_buffer((2, 1, tokens, width), "float32", scope=STACK)
            for n in T.serial(tokens):
                for part in T.unroll(2):
                    for i in T.serial(vectors):
                        start = T.meta_var((1 + part) * hidden + head * width + i * lanes)
                        copied[part, 0, n, span(i * lanes, lanes)] = projected[tokens * row + n, span(start, lanes)]
            for g in T.serial(groups):
                # the last group may begin before the one before it ends
                place = T.bind(T.int32(tokens - 1) if only_last else T.min(g * group, tokens - group))
                query = T.meta_var(of_rows(projected, tokens * row + place, head * width, lanes))
                score(query, of_head(copied, 0, 0, lanes), scores, 0, place + group)
                for t in T.unroll(group):
                    for j in T.unroll(group):
                        if j > t:
                            scores[t, place + j] = T.float32(NEVER)
                soften(scores, place + group, inverse)
                for part in T.serial(vectors // together):
                    total = T.alloc_buffer((group, together * lanes), "float32", scope=STACK)
                    clear(total, together)
                    first = T.meta_var(part * together * lanes)
                    collect(of_head(copied, 1, 0, lanes), scores, 0, place + group, first, total)
                    out = T.meta_var(row if only_last else tokens * row + place)
                    store(total, inverse, seen, out, head * width + first)

    return kernel
