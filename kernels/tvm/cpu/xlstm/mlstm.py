"""The mLSTM block between its two large projections. Formula: `lram_export/backbones/xlstm/step.py`.

Three kernels: convolution, q, k, v and the gates' sums, by parts of the channels; then what is small, per head: the
gates, the chunk's weights, n and m; then the matrix memory, by columns of C, which are read and written once. A fourth
is what lies between the cell and the down-projection. Vectors are as long as divides what they run over.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.convolution import convolve, kept
from lram_export.kernels.tvm.cpu.loops import AHEAD, LINE, STACK, fetch, jobs_loop, rows_loop
from lram_export.kernels.tvm.cpu.norms import moments
from lram_export.kernels.tvm.functions import lane_sum, magnitude, silu, span, wide

NEVER = -1e30
"""Log of a weight that shall be 0."""


def mix_lanes(channels: int, size: int, lanes: int) -> int:
    """Length of the vectors in which a part of so many channels is mixed, blocks of q, k and v being ``size`` wide."""
    return math.gcd(channels, lanes) if size == 4 else math.gcd(channels, size, lanes)


def _spread(x: Any, number: int, lanes: int) -> Any:
    """Element ``number`` of every four lanes, in all four."""
    return T.Shuffle([x], [T.int32(lane // 4 * 4 + number) for lane in range(lanes)])


def _project(x: Any, weight: Any, block: Any, kind: int, offset: Any, lanes: int) -> Any:
    """4x4 blocks times a vector; weight (channels / 16, 3, 4, 16)."""
    total: Any = None
    for number in range(4):
        product = _spread(x, number, lanes) * weight[block, kind, number, T.ramp(offset, 1, lanes)]
        total = product if total is None else total + product
    return total


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
    """Convolution, q, k, v, and each part's share of the gates.

    up (tokens * batch, up_width): the up-projection, of which the first ``inner`` columns are the cell's input; its
    first ``skipped`` tokens do not exist where an episode starts. q, k and v are blocks of ``size`` inputs; a part of
    the channels holds whole blocks. Gate weights (parts, 2 * heads, 2, inner / parts): for the convolved and for the
    plain input. gate_sums (parts, batch, 2 * heads, tokens, lanes), see :func:`mix_lanes`, still have to be added up
    over parts and lanes. The window (batch, taps - 1, inner) moves on in place.
    """
    rows, channels, gates = tokens * batch, inner // parts, 2 * heads
    lanes = mix_lanes(channels, size, lanes)
    together = 4 if gates % 4 == 0 else 2
    """Gates whose sums are in registers at once."""
    read = 4 * inner * (2 * gates + 3 * size)

    @T.inline
    def mix_fours(up, row, part, is_first, conv_weight, conv_bias, query_key_value, window, convolved, q, k, v):
        for i in T.serial(channels // lanes):
            channel = T.meta_var(part * channels + i * lanes)
            block = T.meta_var(channel // 16)
            offset = T.meta_var(channel % 16)
            convolve(
                up, row, channel, is_first, conv_weight, conv_bias, window, taps, tokens, skipped, lanes, convolved
            )
            for t in T.unroll(tokens):
                at = T.meta_var(T.ramp(channel, 1, lanes))
                mixed = T.bind(convolved[tokens * row + t, at])
                q[tokens * row + t, at] = _project(mixed, query_key_value, block, 0, offset, lanes)
                k[tokens * row + t, at] = _project(mixed, query_key_value, block, 1, offset, lanes)
                plain = T.bind(up[tokens * row + t, at])
                v[tokens * row + t, at] = _project(plain, query_key_value, block, 2, offset, lanes)

    @T.inline
    def mix_blocks(up, row, part, is_first, conv_weight, conv_bias, query_key_value, window, convolved, q, k, v):
        for i in T.serial(channels // lanes):
            channel = T.meta_var(part * channels + i * lanes)
            convolve(
                up, row, channel, is_first, conv_weight, conv_bias, window, taps, tokens, skipped, lanes, convolved
            )
        for i, t in T.grid(channels // lanes, tokens):
            channel = T.meta_var(part * channels + i * lanes)
            total = T.alloc_buffer((3, lanes), "float32", scope=STACK)
            every = T.meta_var(span(0, lanes))
            for kind in T.unroll(3):
                total[kind, every] = wide(T.float32(0), lanes)
            for j in T.serial(size):
                mixed = T.meta_var(wide(convolved[tokens * row + t, channel // size * size + j], lanes))
                plain = T.meta_var(wide(up[tokens * row + t, channel // size * size + j], lanes))
                of_block = T.meta_var(span(channel % 16, lanes))
                total[0, every] = total[0, every] + mixed * query_key_value[channel // 16, 0, j, of_block]
                total[1, every] = total[1, every] + mixed * query_key_value[channel // 16, 1, j, of_block]
                total[2, every] = total[2, every] + plain * query_key_value[channel // 16, 2, j, of_block]
            at = T.meta_var(span(channel, lanes))
            q[tokens * row + t, at] = total[0, every]
            k[tokens * row + t, at] = total[1, every]
            v[tokens * row + t, at] = total[2, every]

    mix_channels = mix_fours if size == 4 else mix_blocks

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
        gate_sums: T.Buffer((parts, batch, gates, tokens, lanes), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for part in jobs_loop(parts, read):
            for row in T.serial(batch):
                mix_channels(
                    up, row, part, is_first, conv_weight, conv_bias, query_key_value, window, convolved, q, k, v
                )
                for first in T.serial(gates // together):
                    total = T.alloc_buffer((together, tokens, lanes), "float32", scope=STACK)
                    every = T.meta_var(span(0, lanes))
                    for g in T.unroll(together):
                        for t in T.unroll(tokens):
                            total[g, t, every] = wide(T.float32(0), lanes)
                    for i in T.serial(channels // lanes):
                        for g in T.unroll(together):
                            for t in T.unroll(tokens):
                                of_part = T.meta_var(span(i * lanes, lanes))
                                at = T.meta_var(span(part * channels + i * lanes, lanes))
                                token = T.meta_var(tokens * row + t)
                                gate = T.meta_var(first * together + g)
                                total[g, t, every] = (
                                    total[g, t, every]
                                    + gate_weight[part, gate, 0, of_part] * convolved[token, at]
                                    + gate_weight[part, gate, 1, of_part] * up[token, at]
                                )
                    for g in T.unroll(together):
                        for t in T.unroll(tokens):
                            gate_sums[part, row, first * together + g, t, every] = total[g, t, every]

    return kernel


def coefficient_count(tokens: int) -> int:
    """Numbers per head that :func:`memory` takes, in whole vectors: for every token the decay of the old state, then
    for every token its reciprocal normalizer, then the weights of values (t, j), j <= t, see :func:`pair`."""
    return -(-(2 * tokens + pairs(tokens)) // 16) * 16


def pairs(tokens: int) -> int:
    """How many pairs of a token and one that is not after it there are."""
    return tokens * (tokens + 1) // 2


def pair(t: Any, j: Any) -> Any:
    """Place of the pair of token t with token j, j <= t."""
    return t * (t + 1) // 2 + j


def decays(forget: Any, old: Any, maxima: Any, tokens: int, store: Callable[[int, Any], None]) -> None:
    """Store, for every token, how much it sees of the old state: exp(sum of forget up to it + m - its maximum)."""
    for t in range(tokens):
        since_start = functools.reduce(operator.add, [forget[s] for s in range(t + 1)])
        store(t, T.exp(since_start + old - maxima[t]))


def weights_of_pairs(forget: Any, entering: Any, maxima: Any, tokens: int, store: Callable[[int, Any], None]) -> None:
    """Store, for every pair, how much token t sees of j: exp(sum of forget between them + gate of j - maximum of t)."""
    for t in range(tokens):
        for j in range(t + 1):
            log_weight = functools.reduce(operator.add, [*(forget[s] for s in range(j + 1, t + 1)), entering[j]])
            store(pair(t, j), T.exp(log_weight - maxima[t]))


def stores(buffer: Any, start: int = 0) -> Callable[[int, Any], None]:
    """A function that stores values into a buffer from ``start`` on."""
    return lambda place, value: T.buffer_store(buffer, value, [start + place])


def chunk(
    batch: int, tokens: int, skipped: int, heads: int, width: int, parts: int, sum_lanes: int, lanes: int
) -> PrimFunc:
    """Gates, the chunk's weights, n and m, for every head.

    weighted_keys (tokens * batch, heads * width) are the keys as they enter C; coefficients (batch, heads, numbers):
    see :func:`coefficient_count`. n (batch, heads, width) and m (batch, heads) move on in place.
    """
    rows, inner, gates = tokens * batch, heads * width, 2 * heads
    lanes = math.gcd(width, lanes)
    last = pairs(tokens) - tokens
    """Place of the first pair with the last token."""

    @T.inline
    def gate(gate_sums, gate_bias, row, number, t, value):
        total = T.alloc_buffer((sum_lanes,), "float32", scope=STACK)
        every = T.meta_var(span(0, sum_lanes))
        total[every] = gate_sums[0, row, number, t, every]
        for part in T.serial(parts - 1):
            total[every] = total[every] + gate_sums[part + 1, row, number, t, every]
        value[t] = lane_sum(total[every]) + gate_bias[number]

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
        for cell in jobs_loop(batch * heads, 28 * batch * inner):
            row = T.meta_var(cell // heads)
            head = T.meta_var(cell % heads)
            entering = T.alloc_buffer((tokens,), "float32", scope=STACK)
            forget = T.alloc_buffer((tokens,), "float32", scope=STACK)
            for t in T.unroll(tokens):
                gate(gate_sums, gate_bias, row, head, t, entering)
                gate(gate_sums, gate_bias, row, heads + head, t, forget)
                # log(sigmoid(x)) by the C library, since these few numbers decide about all others
                forget[t] = T.min(forget[t], T.float32(0)) - T.log1p(T.exp(-magnitude(forget[t])))
            if is_first[row] > T.float32(0):
                for t in T.unroll(skipped):
                    entering[t] = T.float32(NEVER)
                    forget[t] = T.float32(0)
            old = T.bind(kept(m[row, head], is_first[row], 1))

            maxima = T.alloc_buffer((tokens,), "float32", scope=STACK)
            maxima[0] = T.max(forget[0] + old, entering[0])
            for t in T.unroll(tokens - 1):
                maxima[t + 1] = T.max(forget[t + 1] + maxima[t], entering[t + 1])
            m[row, head] = maxima[tokens - 1]

            decay = T.alloc_buffer((tokens,), "float32", scope=STACK)
            decays(forget, old, maxima, tokens, stores(decay))
            for t in T.unroll(tokens):
                decay[t] = kept(decay[t], is_first[row], 1)

            weight = T.alloc_buffer((pairs(tokens),), "float32", scope=STACK)
            weights_of_pairs(forget, entering, maxima, tokens, stores(weight))

            # q_t . k_j for j <= t, then q_t . n
            products = T.alloc_buffer((pairs(tokens) + tokens, lanes), "float32", scope=STACK)
            every = T.meta_var(span(0, lanes))
            for p in T.unroll(pairs(tokens) + tokens):
                products[p, every] = wide(T.float32(0), lanes)
            for i in T.serial(width // lanes):
                at = T.meta_var(span(head * width + i * lanes, lanes))
                of_head = T.meta_var(span(i * lanes, lanes))
                before = T.bind(kept(n[row, head, of_head], is_first[row], lanes))
                for t in T.unroll(tokens):
                    for j in T.unroll(tokens):
                        if j <= t:
                            product = T.meta_var(q[tokens * row + t, at] * k[tokens * row + j, at])
                            products[pair(t, j), every] = products[pair(t, j), every] + product
                    products[pairs(tokens) + t, every] = (
                        products[pairs(tokens) + t, every] + q[tokens * row + t, at] * before
                    )
                for j in T.unroll(tokens):
                    weighted_keys[tokens * row + j, at] = k[tokens * row + j, at] * wide(weight[last + j], lanes)
                n[row, head, of_head] = functools.reduce(
                    operator.add,
                    [weighted_keys[tokens * row + j, at] for j in range(tokens)],
                    before * wide(decay[tokens - 1], lanes),
                )

            for t in T.unroll(tokens):
                normalizer = T.alloc_buffer((1,), "float32", scope=STACK)
                normalizer[0] = decay[t] * lane_sum(products[pairs(tokens) + t, every])
                for j in T.unroll(tokens):
                    if j <= t:
                        place = T.meta_var(2 * tokens + pair(t, j))
                        coefficients[row, head, place] = lane_sum(products[pair(t, j), every]) * weight[pair(t, j)]
                        normalizer[0] = normalizer[0] + coefficients[row, head, place]
                coefficients[row, head, t] = decay[t]
                coefficients[row, head, tokens + t] = T.float32(1) / (
                    T.max(magnitude(normalizer[0]), T.exp(-maxima[t])) + T.float32(1e-6)
                )

    return kernel


def memory(batch: int, tokens: int, heads: int, width: int, columns: int, lanes: int) -> PrimFunc:
    """q C, and C' = decay * C + sum of weighted keys times values, in one pass over C, in place.

    C lies in tiles of columns, (batch, heads, tiles, width, columns), so that it is read in sequence; the last tile of
    a head is filled up with zeros. coefficients are those of :func:`chunk`; h (tokens * batch, heads * width) is the
    hidden state before its norm.
    """
    rows, inner, tiles, vectors = tokens * batch, heads * width, -(-width // columns), columns // lanes
    whole = width % columns == 0
    size, ahead = 4 * batch * heads * width * tiles * columns, AHEAD // (4 * columns)

    @T.inline
    def read_values_of_tile(v, token, head, tile, value, t):
        for r in T.serial(columns):
            value[t, r] = T.float32(0)
            if tile * columns + r < width:
                value[t, r] = v[token, head * width + tile * columns + r]

    @T.inline
    def write_tile(total, token, head, tile, factor, h, t):
        for r in T.serial(columns):
            if tile * columns + r < width:
                h[token, head * width + tile * columns + r] = total[t, r] * factor

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
        for job in jobs_loop(batch * heads * tiles, size):
            row = T.meta_var(job // (heads * tiles))
            head = T.meta_var(job // tiles % heads)
            tile = T.meta_var(job % tiles)
            value = T.alloc_buffer((tokens, columns), "float32", scope=STACK)
            total = T.alloc_buffer((tokens, columns), "float32", scope=STACK)
            for t in T.unroll(tokens):
                if not whole:
                    read_values_of_tile(v, tokens * row + t, head, tile, value, t)
                for r in T.unroll(vectors):
                    here = T.meta_var(T.ramp(r * lanes, 1, lanes))
                    if whole:
                        value[t, here] = v[
                            tokens * row + t, T.ramp(head * width + tile * columns + r * lanes, 1, lanes)
                        ]
                    total[t, here] = wide(T.float32(0), lanes)
            decay = T.bind(coefficients[row, head, tokens - 1])
            for i in T.serial(width):
                for n in T.unroll(-(-4 * columns // LINE)):
                    T.evaluate(fetch(C, row, head, tile, i + ahead, n * LINE // 4))
                for r in T.unroll(vectors):
                    here = T.meta_var(T.ramp(r * lanes, 1, lanes))
                    at = T.meta_var(head * width + i)
                    old = T.bind(kept(C[row, head, tile, i, here], is_first[row], lanes))
                    for t in T.unroll(tokens):
                        total[t, here] = total[t, here] + old * wide(q[tokens * row + t, at], lanes)
                    C[row, head, tile, i, here] = functools.reduce(
                        operator.add,
                        [value[j, here] * wide(weighted_keys[tokens * row + j, at], lanes) for j in range(tokens)],
                        old * wide(decay, lanes),
                    )
            for t in T.unroll(tokens):
                for r in T.unroll(vectors):
                    here = T.meta_var(T.ramp(r * lanes, 1, lanes))
                    total[t, here] = total[t, here] * wide(coefficients[row, head, t], lanes)
                    for j in T.unroll(tokens):
                        if j <= t:
                            weight = T.meta_var(coefficients[row, head, 2 * tokens + pair(t, j)])
                            total[t, here] = total[t, here] + value[j, here] * wide(weight, lanes)
                    if whole:
                        h[tokens * row + t, T.ramp(head * width + tile * columns + r * lanes, 1, lanes)] = total[
                            t, here
                        ] * wide(coefficients[row, head, tokens + t], lanes)
                if not whole:
                    write_tile(total, tokens * row + t, head, tile, coefficients[row, head, tokens + t], h, t)

    return kernel


def gated_output(rows: int, heads: int, width: int, up_width: int, epsilon: float, lanes: int) -> PrimFunc:
    """What the mLSTM hands to its down-projection: (head norm(h) + skip * convolved) * SiLU(gate).

    h and convolved are (rows, heads * width); the gate is the second half of the up-projection, which lies in a
    buffer (rows, up_width).
    """
    inner = heads * width
    lanes = math.gcd(width, lanes)

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
        for row in rows_loop(rows, width):
            for head in T.serial(heads):
                found = T.alloc_buffer((2,), "float32", scope=STACK)
                moments(h, row, head * width, width, epsilon, lanes, found)
                for i in T.serial(width // lanes):
                    at = T.meta_var(span(head * width + i * lanes, lanes))
                    gate = T.meta_var(up[row, span(inner + head * width + i * lanes, lanes)])
                    normed = T.meta_var((h[row, at] - wide(found[0], lanes)) * wide(found[1], lanes) * weight[at])
                    y[row, at] = (normed + skip[at] * convolved[row, at]) * silu(gate)

    return kernel
