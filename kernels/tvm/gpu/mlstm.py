"""The mLSTM block for a GPU, see `kernels/tvm/cpu/mlstm.py`."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.mlstm import COEFFICIENTS, NEVER, TOKENS, kept, present
from lram_export.kernels.tvm.functions import magnitude, silu
from lram_export.kernels.tvm.gpu.threads import THREADS, blocks, shared, threads


@T.inline
def convolve(x, row, channel, is_first, weight, bias, window, taps, y):
    """Causal convolution and SiLU of one channel for the three tokens of a row; moves the window on."""
    inputs = T.alloc_buffer((taps - 1 + TOKENS,), "float32", scope="local")
    for j in T.unroll(taps - 1):
        inputs[j] = kept(window[row, j, channel], is_first[row], 1)
    inputs[taps - 1] = present(x[TOKENS * row, channel], is_first[row], 0, 1)
    for t in T.unroll(TOKENS - 1):
        inputs[taps + t] = x[TOKENS * row + 1 + t, channel]
    for t in T.unroll(TOKENS):
        total = T.alloc_buffer((1,), "float32", scope="local")
        total[0] = bias[channel]
        for tap in T.unroll(taps):
            total[0] = total[0] + inputs[t + tap] * weight[tap, channel]
        y[TOKENS * row + t, channel] = silu(total[0])
    for j in T.unroll(taps - 1):
        window[row, j, channel] = inputs[j + TOKENS]


def mix(batch: int, inner: int, up_width: int, taps: int, parts: int, heads: int, lanes: int) -> PrimFunc:
    """See `cpu/mlstm.py`: one block per row and part of the channels; a thread per channel, then per gate and token."""
    rows, channels, gates = TOKENS * batch, inner // parts, 2 * heads

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
        gate_sums: T.Buffer((parts, batch, gates, TOKENS, 1), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(batch * parts):
            row = T.meta_var(block // parts)
            part = T.meta_var(block % parts)
            # what neighbouring threads read of each other is handed on in shared memory
            mixed = T.alloc_buffer((TOKENS, channels), "float32", scope=shared())
            plain = T.alloc_buffer((TOKENS, channels), "float32", scope=shared())
            for thread in threads():
                if thread < channels:
                    channel = T.meta_var(part * channels + thread)
                    convolve(up, row, channel, is_first, conv_weight, conv_bias, window, taps, convolved)
                    for t in T.unroll(TOKENS):
                        mixed[t, thread] = convolved[TOKENS * row + t, channel]
                        plain[t, thread] = up[TOKENS * row + t, channel]
            for thread in threads():
                if thread < channels:
                    channel = T.meta_var(part * channels + thread)
                    total = T.alloc_buffer((3,), "float32", scope="local")
                    for t in T.unroll(TOKENS):
                        for kind in T.unroll(3):
                            total[kind] = T.float32(0)
                        for i in T.unroll(4):
                            block_of_16 = T.meta_var(channel // 16)
                            of_block = T.meta_var(channel % 16)
                            x_mixed = T.meta_var(mixed[t, thread // 4 * 4 + i])
                            x_plain = T.meta_var(plain[t, thread // 4 * 4 + i])
                            total[0] = total[0] + x_mixed * query_key_value[block_of_16, 0, i, of_block]
                            total[1] = total[1] + x_mixed * query_key_value[block_of_16, 1, i, of_block]
                            total[2] = total[2] + x_plain * query_key_value[block_of_16, 2, i, of_block]
                        q[TOKENS * row + t, channel] = total[0]
                        k[TOKENS * row + t, channel] = total[1]
                        v[TOKENS * row + t, channel] = total[2]
            for thread in threads():
                if thread < gates * TOKENS:
                    share = T.alloc_buffer((1,), "float32", scope="local")
                    share[0] = T.float32(0)
                    for i in T.serial(channels):
                        share[0] = (
                            share[0]
                            + gate_weight[part, thread // TOKENS, 0, i] * mixed[thread % TOKENS, i]
                            + gate_weight[part, thread // TOKENS, 1, i] * plain[thread % TOKENS, i]
                        )
                    gate_sums[part, row, thread // TOKENS, thread % TOKENS, 0] = share[0]

    return kernel


def chunk(batch: int, heads: int, width: int, parts: int, lanes: int) -> PrimFunc:
    """See `cpu/mlstm.py`: one block per row and head; a thread adds up a share of the channels for every product."""
    rows, inner, gates = TOKENS * batch, heads * width, 2 * heads

    @T.prim_func(s_tir=True)
    def kernel(
        q: T.Buffer((rows, inner), "float32"),
        k: T.Buffer((rows, inner), "float32"),
        gate_sums: T.Buffer((parts, batch, gates, TOKENS, 1), "float32"),
        gate_bias: T.Buffer((gates,), "float32"),
        is_first: T.Buffer((batch,), "float32"),
        n: T.Buffer((batch, heads, width), "float32"),
        m: T.Buffer((batch, heads), "float32"),
        weighted_keys: T.Buffer((rows, inner), "float32"),
        coefficients: T.Buffer((batch, heads, COEFFICIENTS), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(batch * heads):
            row = T.meta_var(block // heads)
            head = T.meta_var(block % heads)
            # 0 to 2: decay; 3 to 8: weights (t, j); 9 to 11: exp(-m)
            scalars = T.alloc_buffer((12,), "float32", scope=shared())
            products = T.alloc_buffer((9, THREADS), "float32", scope=shared())
            sums = T.alloc_buffer((9,), "float32", scope=shared())
            for thread in threads():
                if thread < 1:
                    entering = T.alloc_buffer((TOKENS,), "float32", scope="local")
                    forget = T.alloc_buffer((TOKENS,), "float32", scope="local")
                    top = T.alloc_buffer((TOKENS,), "float32", scope="local")
                    for t in T.unroll(TOKENS):
                        entering[t] = gate_bias[head]
                        forget[t] = gate_bias[heads + head]
                        for part in T.serial(parts):
                            entering[t] = entering[t] + gate_sums[part, row, head, t, 0]
                            forget[t] = forget[t] + gate_sums[part, row, heads + head, t, 0]
                        forget[t] = T.min(forget[t], T.float32(0)) - T.log(T.float32(1) + T.exp(-magnitude(forget[t])))
                    if is_first[row] > T.float32(0):
                        entering[0] = T.float32(NEVER)
                        forget[0] = T.float32(0)
                    old = T.bind(kept(m[row, head], is_first[row], 1))
                    top[0] = T.max(forget[0] + old, entering[0])
                    top[1] = T.max(forget[1] + top[0], entering[1])
                    top[2] = T.max(forget[2] + top[1], entering[2])
                    m[row, head] = top[2]
                    scalars[0] = kept(T.exp(forget[0] + old - top[0]), is_first[row], 1)
                    scalars[1] = kept(T.exp(forget[0] + forget[1] + old - top[1]), is_first[row], 1)
                    scalars[2] = kept(T.exp(forget[0] + forget[1] + forget[2] + old - top[2]), is_first[row], 1)
                    scalars[3] = T.exp(entering[0] - top[0])
                    scalars[4] = T.exp(forget[1] + entering[0] - top[1])
                    scalars[5] = T.exp(entering[1] - top[1])
                    scalars[6] = T.exp(forget[1] + forget[2] + entering[0] - top[2])
                    scalars[7] = T.exp(forget[2] + entering[1] - top[2])
                    scalars[8] = T.exp(entering[2] - top[2])
                    for t in T.unroll(TOKENS):
                        scalars[9 + t] = T.exp(-top[t])
            for thread in threads():
                total = T.alloc_buffer((9,), "float32", scope="local")
                for p in T.unroll(9):
                    total[p] = T.float32(0)
                for i in T.serial((width + THREADS - 1) // THREADS):
                    of_head = T.meta_var(i * THREADS + thread)
                    at = T.meta_var(head * width + i * THREADS + thread)
                    if i * THREADS + thread < width:
                        before = T.bind(kept(n[row, head, of_head], is_first[row], 1))
                        for t in T.unroll(TOKENS):
                            for j in T.unroll(TOKENS):
                                if j <= t:
                                    p = T.meta_var(t * (t + 1) // 2 + j)
                                    total[p] = total[p] + q[TOKENS * row + t, at] * k[TOKENS * row + j, at]
                            total[6 + t] = total[6 + t] + q[TOKENS * row + t, at] * before
                        for j in T.unroll(TOKENS):
                            weighted_keys[TOKENS * row + j, at] = k[TOKENS * row + j, at] * scalars[6 + j]
                        n[row, head, of_head] = (
                            before * scalars[2]
                            + k[TOKENS * row, at] * scalars[6]
                            + k[TOKENS * row + 1, at] * scalars[7]
                            + k[TOKENS * row + 2, at] * scalars[8]
                        )
                for p in T.unroll(9):
                    products[p, thread] = total[p]
            for thread in threads():
                if thread < 9:
                    share = T.alloc_buffer((1,), "float32", scope="local")
                    share[0] = T.float32(0)
                    for i in T.serial(THREADS):
                        share[0] = share[0] + products[thread, i]
                    sums[thread] = share[0]
            for t in threads():
                if t < TOKENS:
                    normalizer = T.alloc_buffer((1,), "float32", scope="local")
                    normalizer[0] = scalars[t] * sums[6 + t]
                    for j in T.serial(TOKENS):
                        if j <= t:
                            p = T.meta_var(t * (t + 1) // 2 + j)
                            coefficients[row, head, 6 + p] = sums[p] * scalars[3 + p]
                            normalizer[0] = normalizer[0] + sums[p] * scalars[3 + p]
                    coefficients[row, head, t] = scalars[t]
                    coefficients[row, head, 3 + t] = T.float32(1) / (
                        T.max(magnitude(normalizer[0]), scalars[9 + t]) + T.float32(1e-6)
                    )

    return kernel


def memory(batch: int, heads: int, width: int, columns: int, lanes: int) -> PrimFunc:
    """See `cpu/mlstm.py`: one block per row, head and tile of columns; its rows among the warps."""
    rows, inner, tiles = TOKENS * batch, heads * width, width // columns
    per_block = THREADS // columns

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
        for block in blocks(batch * heads * tiles):
            row = T.meta_var(block // (heads * tiles))
            head = T.meta_var(block // tiles % heads)
            tile = T.meta_var(block % tiles)
            sums = T.alloc_buffer((TOKENS, per_block, columns), "float32", scope=shared())
            for thread in threads():
                column = T.meta_var(thread % columns)
                total = T.alloc_buffer((TOKENS,), "float32", scope="local")
                value = T.alloc_buffer((TOKENS,), "float32", scope="local")
                for t in T.unroll(TOKENS):
                    total[t] = T.float32(0)
                    value[t] = v[TOKENS * row + t, head * width + tile * columns + column]
                for i in T.serial((width + per_block - 1) // per_block):
                    at = T.meta_var(i * per_block + thread // columns)
                    if i * per_block + thread // columns < width:
                        old = T.bind(kept(C[row, head, tile, at, column], is_first[row], 1))
                        for t in T.unroll(TOKENS):
                            total[t] = total[t] + old * q[TOKENS * row + t, head * width + at]
                        C[row, head, tile, at, column] = (
                            old * coefficients[row, head, 2]
                            + value[0] * weighted_keys[TOKENS * row, head * width + at]
                            + value[1] * weighted_keys[TOKENS * row + 1, head * width + at]
                            + value[2] * weighted_keys[TOKENS * row + 2, head * width + at]
                        )
                for t in T.unroll(TOKENS):
                    sums[t, thread // columns, column] = total[t]
            for column in threads():
                if column < columns:
                    result = T.alloc_buffer((1,), "float32", scope="local")
                    at = T.meta_var(head * width + tile * columns + column)
                    for t in T.unroll(TOKENS):
                        result[0] = T.float32(0)
                        for i in T.serial(per_block):
                            result[0] = result[0] + sums[t, i, column]
                        result[0] = result[0] * coefficients[row, head, t]
                        for j in T.unroll(TOKENS):
                            if j <= t:
                                weight = T.meta_var(coefficients[row, head, 6 + t * (t + 1) // 2 + j])
                                result[0] = result[0] + v[TOKENS * row + j, at] * weight
                        h[TOKENS * row + t, at] = result[0] * coefficients[row, head, 3 + t]

    return kernel
