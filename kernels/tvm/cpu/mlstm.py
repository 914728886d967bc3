"""The mLSTM block between its two large projections. Formula: `lram_export/model/step_graph.py`.

Three kernels: convolution, q, k, v and the gates' sums, by parts of the channels; then what is small, per head: the
gates, the chunk's weights, n and m; then the matrix memory, by columns of C, which are read and written once.
"""

from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.loops import jobs_loop
from lram_export.kernels.tvm.functions import lane_sum, magnitude, silu, wide

TOKENS = 3
NEVER = -1e30
"""Log of a weight that shall be 0."""


def present(value: Any, is_first: Any, token: int, lanes: int) -> Any:
    """``value``, or 0 for the reward token where an episode starts."""
    if token:
        return value
    return T.Select(wide(is_first > T.float32(0), lanes), wide(T.float32(0), lanes), value)


def kept(value: Any, is_first: Any, lanes: int, initial: float = 0.0) -> Any:
    """A value of the state, or its initial value where an episode starts, whatever the state held."""
    return T.Select(wide(is_first > T.float32(0), lanes), wide(T.float32(initial), lanes), value)


@T.inline
def convolve(x, row, channel, is_first, weight, bias, window, taps, lanes, y):
    """Causal convolution and SiLU of a vector of channels for the three tokens of a row; moves the window on.

    x, y: (3 * batch, channels or more); window: (batch, taps - 1, channels); weight: (taps, channels).
    """
    at = T.meta_var(T.ramp(channel, 1, lanes))
    inputs = T.alloc_buffer((taps - 1 + TOKENS, lanes), "float32", scope="local")
    every = T.meta_var(T.ramp(0, 1, lanes))
    for j in T.unroll(taps - 1):
        inputs[j, every] = kept(window[row, j, at], is_first[row], lanes)
    inputs[taps - 1, every] = present(x[TOKENS * row, at], is_first[row], 0, lanes)
    for t in T.unroll(TOKENS - 1):
        inputs[taps + t, every] = x[TOKENS * row + 1 + t, at]
    for t in T.unroll(TOKENS):
        total = T.alloc_buffer((lanes,), "float32", scope="local")
        total[every] = bias[at]
        for tap in T.unroll(taps):
            total[every] = total[every] + inputs[t + tap, every] * weight[tap, at]
        y[TOKENS * row + t, at] = silu(total[every])
    for j in T.unroll(taps - 1):
        window[row, j, at] = inputs[j + TOKENS, every]


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


def mix(batch: int, inner: int, up_width: int, taps: int, parts: int, heads: int, lanes: int) -> PrimFunc:
    """Convolution, q, k, v, and each part's share of the gates.

    up (3 * batch, up_width): the up-projection, of which the first ``inner`` columns are the cell's input. Gate weights
    (parts, 2 * heads, 2, inner / parts): for the convolved and for the plain input. gate_sums (parts, batch, 2 * heads,
    3, lanes) still have to be added up over parts and lanes. The window (batch, taps - 1, inner) moves on in place.
    """
    rows, channels, gates = TOKENS * batch, inner // parts, 2 * heads
    together = 4 if gates % 4 == 0 else 2
    """Gates whose sums are in registers at once."""
    size = 4 * inner * (2 * gates + 12)

    @T.prim_func(s_tir=True)
    def kernel(
        up: T.Buffer((rows, up_width), "float32"),
        is_first: T.Buffer((batch,), "float32"),
        conv_weight: T.Buffer((taps, inner), "float32"),
        conv_bias: T.Buffer((inner,), "float32"),
        query_key_value: T.Buffer((inner // 16, 3, 4, 16), "float32"),
        gate_weight: T.Buffer((parts, gates, 2, channels), "float32"),
        window: T.Buffer((batch, taps - 1, inner), "float32"),
        convolved: T.Buffer((rows, inner), "float32"),
        q: T.Buffer((rows, inner), "float32"),
        k: T.Buffer((rows, inner), "float32"),
        v: T.Buffer((rows, inner), "float32"),
        gate_sums: T.Buffer((parts, batch, gates, TOKENS, lanes), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for part in jobs_loop(parts, size):
            for row in T.serial(batch):
                for i in T.serial(channels // lanes):
                    channel = T.meta_var(part * channels + i * lanes)
                    block = T.meta_var((part * channels + i * lanes) // 16)
                    offset = T.meta_var((i * lanes) % 16)
                    convolve(up, row, channel, is_first, conv_weight, conv_bias, window, taps, lanes, convolved)
                    for t in T.unroll(TOKENS):
                        at = T.meta_var(T.ramp(channel, 1, lanes))
                        mixed = T.bind(convolved[TOKENS * row + t, at])
                        q[TOKENS * row + t, at] = _project(mixed, query_key_value, block, 0, offset, lanes)
                        k[TOKENS * row + t, at] = _project(mixed, query_key_value, block, 1, offset, lanes)
                        plain = T.bind(up[TOKENS * row + t, at])
                        v[TOKENS * row + t, at] = _project(plain, query_key_value, block, 2, offset, lanes)
                for first in T.serial(gates // together):
                    total = T.alloc_buffer((together, TOKENS, lanes), "float32", scope="local")
                    every = T.meta_var(T.ramp(0, 1, lanes))
                    for g in T.unroll(together):
                        for t in T.unroll(TOKENS):
                            total[g, t, every] = wide(T.float32(0), lanes)
                    for i in T.serial(channels // lanes):
                        for g in T.unroll(together):
                            for t in T.unroll(TOKENS):
                                of_part = T.meta_var(T.ramp(i * lanes, 1, lanes))
                                at = T.meta_var(T.ramp(part * channels + i * lanes, 1, lanes))
                                token = T.meta_var(TOKENS * row + t)
                                gate = T.meta_var(first * together + g)
                                total[g, t, every] = (
                                    total[g, t, every]
                                    + gate_weight[part, gate, 0, of_part] * convolved[token, at]
                                    + gate_weight[part, gate, 1, of_part] * up[token, at]
                                )
                    for g in T.unroll(together):
                        for t in T.unroll(TOKENS):
                            gate_sums[part, row, first * together + g, t, every] = total[g, t, every]

    return kernel


COEFFICIENTS = 16
"""Numbers per head that :func:`memory` takes: decay of the old state for tokens 0 to 2, reciprocal normalizers of
tokens 0 to 2, weights of values (t, j) for (0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)."""


def chunk(batch: int, heads: int, width: int, parts: int, lanes: int) -> PrimFunc:
    """Gates, the chunk's weights, n and m, for every head.

    weighted_keys (3 * batch, heads * width) are the keys as they enter C; coefficients (batch, heads, 16), see
    :data:`COEFFICIENTS`. n (batch, heads, width) and m (batch, heads) move on in place.
    """
    rows, inner, gates = TOKENS * batch, heads * width, 2 * heads

    @T.inline
    def gate(gate_sums, gate_bias, row, number, t, value):
        total = T.alloc_buffer((lanes,), "float32", scope="local")
        every = T.meta_var(T.ramp(0, 1, lanes))
        total[every] = gate_sums[0, row, number, t, every]
        for part in T.serial(parts - 1):
            total[every] = total[every] + gate_sums[part + 1, row, number, t, every]
        value[t] = lane_sum(total[every]) + gate_bias[number]

    @T.prim_func(s_tir=True)
    def kernel(
        q: T.Buffer((rows, inner), "float32"),
        k: T.Buffer((rows, inner), "float32"),
        gate_sums: T.Buffer((parts, batch, gates, TOKENS, lanes), "float32"),
        gate_bias: T.Buffer((gates,), "float32"),
        is_first: T.Buffer((batch,), "float32"),
        n: T.Buffer((batch, heads, width), "float32"),
        m: T.Buffer((batch, heads), "float32"),
        weighted_keys: T.Buffer((rows, inner), "float32"),
        coefficients: T.Buffer((batch, heads, COEFFICIENTS), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for cell in jobs_loop(batch * heads, 28 * batch * inner):
            row = T.meta_var(cell // heads)
            head = T.meta_var(cell % heads)
            entering = T.alloc_buffer((TOKENS,), "float32", scope="local")
            forget = T.alloc_buffer((TOKENS,), "float32", scope="local")
            for t in T.unroll(TOKENS):
                gate(gate_sums, gate_bias, row, head, t, entering)
                gate(gate_sums, gate_bias, row, heads + head, t, forget)
                # log(sigmoid(x)) by the C library, since these few numbers decide about all others
                forget[t] = T.min(forget[t], T.float32(0)) - T.log1p(T.exp(-magnitude(forget[t])))
            if is_first[row] > T.float32(0):
                entering[0] = T.float32(NEVER)
                forget[0] = T.float32(0)
            old = T.bind(kept(m[row, head], is_first[row], 1))

            maxima = T.alloc_buffer((TOKENS,), "float32", scope="local")
            maxima[0] = T.max(forget[0] + old, entering[0])
            maxima[1] = T.max(forget[1] + maxima[0], entering[1])
            maxima[2] = T.max(forget[2] + maxima[1], entering[2])
            m[row, head] = maxima[2]

            decay = T.alloc_buffer((TOKENS,), "float32", scope="local")
            decay[0] = T.exp(forget[0] + old - maxima[0])
            decay[1] = T.exp(forget[0] + forget[1] + old - maxima[1])
            decay[2] = T.exp(forget[0] + forget[1] + forget[2] + old - maxima[2])
            for t in T.unroll(TOKENS):
                decay[t] = kept(decay[t], is_first[row], 1)

            weight = T.alloc_buffer((6,), "float32", scope="local")
            weight[0] = T.exp(entering[0] - maxima[0])
            weight[1] = T.exp(forget[1] + entering[0] - maxima[1])
            weight[2] = T.exp(entering[1] - maxima[1])
            weight[3] = T.exp(forget[1] + forget[2] + entering[0] - maxima[2])
            weight[4] = T.exp(forget[2] + entering[1] - maxima[2])
            weight[5] = T.exp(entering[2] - maxima[2])

            # q_t . k_j for j <= t, then q_t . n
            products = T.alloc_buffer((9, lanes), "float32", scope="local")
            every = T.meta_var(T.ramp(0, 1, lanes))
            for p in T.unroll(9):
                products[p, every] = wide(T.float32(0), lanes)
            for i in T.serial(width // lanes):
                at = T.meta_var(T.ramp(head * width + i * lanes, 1, lanes))
                of_head = T.meta_var(T.ramp(i * lanes, 1, lanes))
                before = T.bind(kept(n[row, head, of_head], is_first[row], lanes))
                for t in T.unroll(TOKENS):
                    for j in T.unroll(TOKENS):
                        if j <= t:
                            p = T.meta_var(t * (t + 1) // 2 + j)
                            product = T.meta_var(q[TOKENS * row + t, at] * k[TOKENS * row + j, at])
                            products[p, every] = products[p, every] + product
                    products[6 + t, every] = products[6 + t, every] + q[TOKENS * row + t, at] * before
                for j in T.unroll(TOKENS):
                    weighted_keys[TOKENS * row + j, at] = k[TOKENS * row + j, at] * wide(weight[3 + j], lanes)
                n[row, head, of_head] = (
                    before * wide(decay[2], lanes)
                    + weighted_keys[TOKENS * row, at]
                    + weighted_keys[TOKENS * row + 1, at]
                    + weighted_keys[TOKENS * row + 2, at]
                )

            for t in T.unroll(TOKENS):
                normalizer = T.alloc_buffer((1,), "float32", scope="local")
                normalizer[0] = decay[t] * lane_sum(products[6 + t, every])
                for j in T.unroll(TOKENS):
                    if j <= t:
                        p = T.meta_var(t * (t + 1) // 2 + j)
                        coefficients[row, head, 6 + p] = lane_sum(products[p, every]) * weight[p]
                        normalizer[0] = normalizer[0] + coefficients[row, head, 6 + p]
                coefficients[row, head, t] = decay[t]
                coefficients[row, head, 3 + t] = T.float32(1) / (
                    T.max(magnitude(normalizer[0]), T.exp(-maxima[t])) + T.float32(1e-6)
                )

    return kernel


def memory(batch: int, heads: int, width: int, columns: int, lanes: int) -> PrimFunc:
    """q C, and C' = decay * C + sum of weighted keys times values, in one pass over C, in place.

    C lies in tiles of columns, (batch, heads, width / columns, width, columns), so that it is read in sequence.
    h (3 * batch, heads * width) is the hidden state before its norm.
    """
    rows, inner, tiles, vectors = TOKENS * batch, heads * width, width // columns, columns // lanes
    size = 4 * batch * heads * width * width

    @T.prim_func(s_tir=True)
    def kernel(
        q: T.Buffer((rows, inner), "float32"),
        weighted_keys: T.Buffer((rows, inner), "float32"),
        v: T.Buffer((rows, inner), "float32"),
        coefficients: T.Buffer((batch, heads, COEFFICIENTS), "float32"),
        is_first: T.Buffer((batch,), "float32"),
        C: T.Buffer((batch, heads, tiles, width, columns), "float32"),
        h: T.Buffer((rows, inner), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for job in jobs_loop(batch * heads * tiles, size):
            row = T.meta_var(job // (heads * tiles))
            head = T.meta_var(job // tiles % heads)
            tile = T.meta_var(job % tiles)
            value = T.alloc_buffer((TOKENS, columns), "float32", scope="local")
            total = T.alloc_buffer((TOKENS, columns), "float32", scope="local")
            for t in T.unroll(TOKENS):
                for r in T.unroll(vectors):
                    here = T.meta_var(T.ramp(r * lanes, 1, lanes))
                    at = T.meta_var(T.ramp(head * width + tile * columns + r * lanes, 1, lanes))
                    value[t, here] = v[TOKENS * row + t, at]
                    total[t, here] = wide(T.float32(0), lanes)
            decay = T.bind(coefficients[row, head, 2])
            for i in T.serial(width):
                for r in T.unroll(vectors):
                    here = T.meta_var(T.ramp(r * lanes, 1, lanes))
                    at = T.meta_var(head * width + i)
                    old = T.bind(kept(C[row, head, tile, i, here], is_first[row], lanes))
                    for t in T.unroll(TOKENS):
                        total[t, here] = total[t, here] + old * wide(q[TOKENS * row + t, at], lanes)
                    C[row, head, tile, i, here] = (
                        old * wide(decay, lanes)
                        + value[0, here] * wide(weighted_keys[TOKENS * row, at], lanes)
                        + value[1, here] * wide(weighted_keys[TOKENS * row + 1, at], lanes)
                        + value[2, here] * wide(weighted_keys[TOKENS * row + 2, at], lanes)
                    )
            for t in T.unroll(TOKENS):
                for r in T.unroll(vectors):
                    here = T.meta_var(T.ramp(r * lanes, 1, lanes))
                    total[t, here] = total[t, here] * wide(coefficients[row, head, t], lanes)
                    for j in T.unroll(TOKENS):
                        if j <= t:
                            weight = T.meta_var(coefficients[row, head, 6 + t * (t + 1) // 2 + j])
                            total[t, here] = total[t, here] + value[j, here] * wide(weight, lanes)
                    h[TOKENS * row + t, T.ramp(head * width + tile * columns + r * lanes, 1, lanes)] = total[
                        t, here
                    ] * wide(coefficients[row, head, 3 + t], lanes)

    return kernel
