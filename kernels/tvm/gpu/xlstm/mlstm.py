"""The mLSTM block for a GPU, see `kernels/tvm/cpu/xlstm/mlstm.py`."""

import functools
import operator
from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.convolution import kept
from lram_export.kernels.tvm.cpu.xlstm.mlstm import (
    NEVER,
    coefficient_count,
    decays,
    pair,
    pairs,
    stores,
    weights_of_pairs,
)
from lram_export.kernels.tvm.functions import magnitude, silu
from lram_export.kernels.tvm.gpu.convolution import convolve
from lram_export.kernels.tvm.gpu.norms import moments
from lram_export.kernels.tvm.gpu.threads import FOLD, THREADS, WARP, WARPS, blocks, shared, threads

AT_ONCE = 4
"""Numbers of C that a thread reads before it needs the first of them."""
GATES = 4 * WARPS
"""Sums of gates, of one token each, that a block computes at once."""


def stores_kept(buffer: Any, is_first: Any) -> Callable[[int, Any], None]:
    """A function that stores values into a buffer, 0 where an episode starts."""
    return lambda place, value: T.buffer_store(buffer, kept(value, is_first, 1), [place])


def mix(
    batch: int,
    tokens: int,
    skipped: int,
    inner: int,
    up_width: int,
    taps: int,
    parts: int,
    heads: int,
    size: int,
    lanes: int,
) -> PrimFunc:
    """See `cpu/xlstm/mlstm.py`: one block per row and part of the channels; a thread per channel, then a warp per gate
    and token."""
    rows, channels, gates = tokens * batch, inner // parts, 2 * heads
    rounds = -(-channels // THREADS)

    @T.prim_func(s_tir=True)
    def kernel(
        up: T.Buffer((rows, up_width), "float32"),
        is_first: T.Buffer((batch,), "float32"),
        conv_weight: T.Buffer((taps, inner), "float32"),
        conv_bias: T.Buffer((inner,), "float32"),
        query_key_value: T.Buffer(((inner + 15) // 16, 3, size, 16), "float32"),
        gate_weight: T.Buffer((parts, gates, 2, channels), "float32"),
        window: T.Buffer((batch, taps - 1, inner), "float32"),
        convolved: T.Buffer((rows, inner), "float32"),
        q: T.Buffer((rows, inner), "float32"),
        k: T.Buffer((rows, inner), "float32"),
        v: T.Buffer((rows, inner), "float32"),
        gate_sums: T.Buffer((parts, batch, gates, tokens, 1), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(batch * parts):
            row = T.meta_var(block // parts)
            part = T.meta_var(block % parts)
            # what neighbouring threads read of each other is handed on in shared memory
            mixed = T.alloc_buffer((tokens, channels), "float32", scope=shared())
            plain = T.alloc_buffer((tokens, channels), "float32", scope=shared())
            shares = T.alloc_buffer((GATES, WARP), "float32", scope=shared())
            for thread in threads():
                for i in T.serial(rounds):
                    of_part = T.meta_var(i * THREADS + thread)
                    if i * THREADS + thread < channels:
                        channel = T.meta_var(part * channels + of_part)
                        convolve(
                            up, row, channel, is_first, conv_weight, conv_bias, window, taps, tokens, skipped, convolved
                        )
                        for t in T.unroll(tokens):
                            mixed[t, of_part] = convolved[tokens * row + t, channel]
                            plain[t, of_part] = up[tokens * row + t, channel]
            for thread in threads():
                for r in T.serial(rounds):
                    of_part = T.meta_var(r * THREADS + thread)
                    if r * THREADS + thread < channels:
                        channel = T.meta_var(part * channels + of_part)
                        total = T.alloc_buffer((3,), "float32", scope="local")
                        for t in T.unroll(tokens):
                            for kind in T.unroll(3):
                                total[kind] = T.float32(0)
                            for i in T.unroll(size) if size <= 4 else T.serial(size):
                                block_of_16 = T.meta_var(channel // 16)
                                of_block = T.meta_var(channel % 16)
                                x_mixed = T.meta_var(mixed[t, of_part // size * size + i])
                                x_plain = T.meta_var(plain[t, of_part // size * size + i])
                                total[0] = total[0] + x_mixed * query_key_value[block_of_16, 0, i, of_block]
                                total[1] = total[1] + x_mixed * query_key_value[block_of_16, 1, i, of_block]
                                total[2] = total[2] + x_plain * query_key_value[block_of_16, 2, i, of_block]
                            q[tokens * row + t, channel] = total[0]
                            k[tokens * row + t, channel] = total[1]
                            v[tokens * row + t, channel] = total[2]
            for r in T.serial((gates * tokens + GATES - 1) // GATES):
                for thread in threads():
                    for u in T.serial(GATES // WARPS):
                        place = T.meta_var(u * WARPS + thread // WARP)
                        job = T.meta_var(r * GATES + u * WARPS + thread // WARP)
                        if r * GATES + u * WARPS + thread // WARP < gates * tokens:
                            share = T.alloc_buffer((1,), "float32", scope="local")
                            share[0] = T.float32(0)
                            for i in T.serial((channels + WARP - 1) // WARP):
                                at = T.meta_var(i * WARP + thread % WARP)
                                if i * WARP + thread % WARP < channels:
                                    share[0] = (
                                        share[0]
                                        + gate_weight[part, job // tokens, 0, at] * mixed[job % tokens, at]
                                        + gate_weight[part, job // tokens, 1, at] * plain[job % tokens, at]
                                    )
                            shares[place, thread % WARP] = share[0]
                for thread in threads():
                    job = T.meta_var(r * GATES + thread)
                    if T.And(thread < GATES, r * GATES + thread < gates * tokens):
                        share = T.alloc_buffer((1,), "float32", scope="local")
                        share[0] = shares[thread, 0]
                        for i in T.unroll(WARP - 1):
                            share[0] = share[0] + shares[thread, i + 1]
                        gate_sums[part, row, job // tokens, job % tokens, 0] = share[0]

    return kernel


def chunk(
    batch: int, tokens: int, skipped: int, heads: int, width: int, parts: int, sum_lanes: int, lanes: int
) -> PrimFunc:
    """See `cpu/xlstm/mlstm.py`: one block per row and head; a thread adds up a share of the channels for every
    product."""
    rows, inner, gates = tokens * batch, heads * width, 2 * heads
    count, last = pairs(tokens), pairs(tokens) - tokens

    @T.prim_func(s_tir=True)
    def kernel(
        q: T.Buffer((rows, inner), "float32"),
        k: T.Buffer((rows, inner), "float32"),
        gate_sums: T.Buffer((parts, batch, gates, tokens, sum_lanes), "float32"),
        gate_bias: T.Buffer((gates,), "float32"),
        is_first: T.Buffer((batch,), "float32"),
        n: T.Buffer((batch, heads, width), "float32"),
        m: T.Buffer((batch, heads), "float32"),
        weighted_keys: T.Buffer((rows, inner), "float32"),
        coefficients: T.Buffer((batch, heads, coefficient_count(tokens)), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(batch * heads):
            row = T.meta_var(block // heads)
            head = T.meta_var(block % heads)
            # decay of every token; weights of pairs (t, j); exp(-m) of every token
            scalars = T.alloc_buffer((2 * tokens + count,), "float32", scope=shared())
            products = T.alloc_buffer((count + tokens, THREADS), "float32", scope=shared())
            folded = T.alloc_buffer((count + tokens, FOLD), "float32", scope=shared())
            sums = T.alloc_buffer((count + tokens,), "float32", scope=shared())
            for thread in threads():
                if thread < 1:
                    entering = T.alloc_buffer((tokens,), "float32", scope="local")
                    forget = T.alloc_buffer((tokens,), "float32", scope="local")
                    top = T.alloc_buffer((tokens,), "float32", scope="local")
                    for t in T.unroll(tokens):
                        entering[t] = gate_bias[head]
                        forget[t] = gate_bias[heads + head]
                        for part in T.serial(parts):
                            entering[t] = entering[t] + gate_sums[part, row, head, t, 0]
                            forget[t] = forget[t] + gate_sums[part, row, heads + head, t, 0]
                        forget[t] = T.min(forget[t], T.float32(0)) - T.log(T.float32(1) + T.exp(-magnitude(forget[t])))
                    if is_first[row] > T.float32(0):
                        for t in T.unroll(skipped):
                            entering[t] = T.float32(NEVER)
                            forget[t] = T.float32(0)
                    old = T.bind(kept(m[row, head], is_first[row], 1))
                    top[0] = T.max(forget[0] + old, entering[0])
                    for t in T.unroll(tokens - 1):
                        top[t + 1] = T.max(forget[t + 1] + top[t], entering[t + 1])
                    m[row, head] = top[tokens - 1]
                    decays(forget, old, top, tokens, stores_kept(scalars, is_first[row]))
                    weights_of_pairs(forget, entering, top, tokens, stores(scalars, tokens))
                    for t in T.unroll(tokens):
                        scalars[tokens + count + t] = T.exp(-top[t])
            for thread in threads():
                total = T.alloc_buffer((count + tokens,), "float32", scope="local")
                for p in T.unroll(count + tokens):
                    total[p] = T.float32(0)
                for i in T.serial((width + THREADS - 1) // THREADS):
                    of_head = T.meta_var(i * THREADS + thread)
                    at = T.meta_var(head * width + i * THREADS + thread)
                    if i * THREADS + thread < width:
                        before = T.bind(kept(n[row, head, of_head], is_first[row], 1))
                        for t in T.unroll(tokens):
                            for j in T.unroll(tokens):
                                if j <= t:
                                    product = T.meta_var(q[tokens * row + t, at] * k[tokens * row + j, at])
                                    total[pair(t, j)] = total[pair(t, j)] + product
                            total[count + t] = total[count + t] + q[tokens * row + t, at] * before
                        for j in T.unroll(tokens):
                            weighted_keys[tokens * row + j, at] = k[tokens * row + j, at] * scalars[tokens + last + j]
                        n[row, head, of_head] = functools.reduce(
                            operator.add,
                            [k[tokens * row + j, at] * scalars[tokens + last + j] for j in range(tokens)],
                            before * scalars[tokens - 1],
                        )
                for p in T.unroll(count + tokens):
                    products[p, thread] = total[p]
            for thread in threads():
                for r in T.serial(((count + tokens) * FOLD + THREADS - 1) // THREADS):
                    job = T.meta_var((r * THREADS + thread) // FOLD)
                    if r * THREADS + thread < (count + tokens) * FOLD:
                        share = T.alloc_buffer((1,), "float32", scope="local")
                        share[0] = products[job, thread % FOLD]
                        for i in T.unroll(THREADS // FOLD - 1):
                            share[0] = share[0] + products[job, FOLD * (i + 1) + thread % FOLD]
                        folded[job, thread % FOLD] = share[0]
            for thread in threads():
                if thread < count + tokens:
                    share = T.alloc_buffer((1,), "float32", scope="local")
                    share[0] = folded[thread, 0]
                    for i in T.unroll(FOLD - 1):
                        share[0] = share[0] + folded[thread, i + 1]
                    sums[thread] = share[0]
            for t in threads():
                if t < tokens:
                    normalizer = T.alloc_buffer((1,), "float32", scope="local")
                    normalizer[0] = scalars[t] * sums[count + t]
                    for j in T.serial(tokens):
                        if j <= t:
                            p = T.meta_var(pair(t, j))
                            coefficients[row, head, 2 * tokens + p] = sums[p] * scalars[tokens + p]
                            normalizer[0] = normalizer[0] + sums[p] * scalars[tokens + p]
                    coefficients[row, head, t] = scalars[t]
                    coefficients[row, head, tokens + t] = T.float32(1) / (
                        T.max(magnitude(normalizer[0]), scalars[tokens + count + t]) + T.float32(1e-6)
                    )

    return kernel


def memory(batch: int, tokens: int, heads: int, width: int, columns: int, lanes: int) -> PrimFunc:
    """See `cpu/xlstm/mlstm.py`: one block per row, head and tile of columns; its rows among the warps."""
    rows, inner, tiles = tokens * batch, heads * width, -(-width // columns)
    per_block = THREADS // columns
    rounds = -(-width // (per_block * AT_ONCE))

    @T.prim_func(s_tir=True)
    def kernel(
        q: T.Buffer((rows, inner), "float32"),
        weighted_keys: T.Buffer((rows, inner), "float32"),
        v: T.Buffer((rows, inner), "float32"),
        coefficients: T.Buffer((batch, heads, coefficient_count(tokens)), "float32"),
        is_first: T.Buffer((batch,), "float32"),
        C: T.Buffer((batch, heads, tiles, width, columns), "float32"),
        h: T.Buffer((rows, inner), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(batch * heads * tiles):
            row = T.meta_var(block // (heads * tiles))
            head = T.meta_var(block // tiles % heads)
            tile = T.meta_var(block % tiles)
            sums = T.alloc_buffer((tokens, per_block, columns), "float32", scope=shared())
            for thread in threads():
                column = T.meta_var(thread % columns)
                total = T.alloc_buffer((tokens,), "float32", scope="local")
                value = T.alloc_buffer((tokens,), "float32", scope="local")
                for t in T.unroll(tokens):
                    total[t] = T.float32(0)
                    value[t] = T.float32(0)
                    if tile * columns + thread % columns < width:
                        value[t] = v[tokens * row + t, head * width + tile * columns + column]
                for r in T.serial(rounds):
                    old = T.alloc_buffer((AT_ONCE,), "float32", scope="local")
                    for i in T.unroll(AT_ONCE):
                        at = T.meta_var((r * AT_ONCE + i) * per_block + thread // columns)
                        if (r * AT_ONCE + i) * per_block + thread // columns < width:
                            old[i] = kept(C[row, head, tile, at, column], is_first[row], 1)
                    for i in T.unroll(AT_ONCE):
                        at = T.meta_var((r * AT_ONCE + i) * per_block + thread // columns)
                        if (r * AT_ONCE + i) * per_block + thread // columns < width:
                            for t in T.unroll(tokens):
                                total[t] = total[t] + old[i] * q[tokens * row + t, head * width + at]
                            C[row, head, tile, at, column] = functools.reduce(
                                operator.add,
                                [value[j] * weighted_keys[tokens * row + j, head * width + at] for j in range(tokens)],
                                old[i] * coefficients[row, head, tokens - 1],
                            )
                for t in T.unroll(tokens):
                    sums[t, thread // columns, column] = total[t]
            for thread in threads():
                column = T.meta_var(thread % columns)
                if thread < tokens * columns and tile * columns + thread % columns < width:
                    result = T.alloc_buffer((1,), "float32", scope="local")
                    t = T.meta_var(thread // columns)
                    at = T.meta_var(head * width + tile * columns + column)
                    result[0] = sums[t, 0, column]
                    for i in T.unroll(per_block - 1):
                        result[0] = result[0] + sums[t, i + 1, column]
                    result[0] = result[0] * coefficients[row, head, t]
                    for j in T.unroll(tokens):
                        if j <= t:
                            weight = T.meta_var(coefficients[row, head, 2 * tokens + pair(t, j)])
                            result[0] = result[0] + v[tokens * row + j, at] * weight
                    h[tokens * row + t, at] = result[0] * coefficients[row, head, tokens + t]

    return kernel


def gated_output(rows: int, heads: int, width: int, up_width: int, epsilon: float, lanes: int) -> PrimFunc:
    """See `cpu/xlstm/mlstm.py`: one block per row and head."""
    inner = heads * width

    @T.prim_func(s_tir=True)
    def kernel(
        h: T.Buffer((rows, inner), "float32"),
        convolved: T.Buffer((rows, inner), "float32"),
        up: T.Buffer((rows, up_width), "float32"),
        weight: T.Buffer((inner,), "float32"),
        skip: T.Buffer((inner,), "float32"),
        y: T.Buffer((rows, inner), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(rows * heads):
            row = T.meta_var(block // heads)
            start = T.meta_var(block % heads * width)
            parts = T.alloc_buffer((THREADS,), "float32", scope=shared())
            folded = T.alloc_buffer((FOLD,), "float32", scope=shared())
            found = T.alloc_buffer((2,), "float32", scope=shared())
            moments(h, row, start, width, epsilon, parts, folded, found)
            for thread in threads():
                for i in T.serial((width + THREADS - 1) // THREADS):
                    at = T.meta_var(start + i * THREADS + thread)
                    if i * THREADS + thread < width:
                        normed = T.meta_var((h[row, at] - found[0]) * found[1] * weight[at])
                        y[row, at] = (normed + skip[at] * convolved[row, at]) * silu(up[row, inner + at])

    return kernel
