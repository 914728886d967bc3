"""The kernels for a GPU: names, arguments and weights of those for processors, divided among blocks and threads.

A kernel is a grid of blocks, and a block a sequence of loops over its threads; what threads hand on to each other lies
in shared memory, and TVM puts a barrier where a loop needs what another one left. So the same text is a program for one
processor if blocks and threads are plain loops, and that is how the tests check it where no GPU is (``emulate``).

Reads of weights and of C are coalesced: a warp takes the 32 outputs of a tile, or the 32 columns of a tile of C. Inputs
of a product are divided among the warps of a block, which add up in shared memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernel_layout import TILE
from lram_export.kernels.tvm.functions import (
    ACTIVATIONS,
    bind,
    exponential,
    hyperbolic_tangent,
    log_sigmoid,
    magnitude,
    relu,
    sigmoid,
    silu,
)
from lram_export.kernels.tvm.mlstm import COEFFICIENTS, NEVER, TOKENS, kept, present
from lram_export.kernels.tvm.slstm import INITIAL_M
from lram_export.precision import GROUP

WARP = 32
WARPS = 8
THREADS = WARP * WARPS
COLUMNS = 32
"""Width of the tiles of C: one warp's."""

_emulated = False


@contextmanager
def emulate() -> Iterator[None]:
    """Kernels made inside are plain loops, for a processor."""
    global _emulated
    _emulated = True
    try:
        yield
    finally:
        _emulated = False


def _blocks(count: int) -> Any:
    return T.serial(count) if _emulated else T.thread_binding(count, "blockIdx.x")


def _threads() -> Any:
    """The threads of a block. All of them enter every loop; a loop for fewer has a condition inside."""
    return T.serial(THREADS) if _emulated else T.thread_binding(THREADS, "threadIdx.x")


def _shared() -> str:
    return "global" if _emulated else "shared"


@T.inline
def add_up(parts, count, width, total, place, finish):
    """Sum of ``count`` numbers that threads left in shared memory, by one thread: they are few."""
    for thread in _threads():
        if thread < 1:
            result = T.alloc_buffer((1,), "float32", scope="local")
            result[0] = parts[0]
            for i in T.serial(count - 1):
                result[0] = result[0] + parts[i + 1]
            total[place] = finish(result[0] / T.float32(width))


@T.inline
def moments(x, row, start, width, epsilon, parts, found):
    """Mean and reciprocal deviation of ``x[row, start : start + width]`` into ``found``, in shared memory."""
    for thread in _threads():
        total = T.alloc_buffer((1,), "float32", scope="local")
        total[0] = T.float32(0)
        for i in T.serial((width + THREADS - 1) // THREADS):
            if i * THREADS + thread < width:
                total[0] = total[0] + x[row, start + i * THREADS + thread]
        parts[thread] = total[0]
    add_up(parts, THREADS, width, found, 0, lambda mean: mean)
    for thread in _threads():
        total = T.alloc_buffer((1,), "float32", scope="local")
        total[0] = T.float32(0)
        for i in T.serial((width + THREADS - 1) // THREADS):
            if i * THREADS + thread < width:
                difference = T.bind(x[row, start + i * THREADS + thread] - found[0])
                total[0] = total[0] + difference * difference
        parts[thread] = total[0]
    add_up(parts, THREADS, width, found, 1, lambda variance: T.float32(1) / T.sqrt(variance + T.float32(epsilon)))


def tokens_at_once(rows: int) -> int:
    """How many tokens are multiplied with a weight that a thread has read."""
    return next(count for count in (3, 2, 1) if rows % count == 0)


def _product(rows: int, parts: int, tiles: int, steps: int, accumulate: Any, scaled: bool) -> Any:
    """The frame of every product, for one block: a tile and some tokens; ``steps`` of inputs among the warps.

    ``accumulate(x, weight, scales, total, tile, step, lane, first)`` adds a step's inputs to a thread's output.
    """
    group = tokens_at_once(rows)

    @T.inline
    def product(x, weight, scales, y, block):
        tile = T.meta_var(block % (parts * tiles))
        first = T.meta_var(block // (parts * tiles) * group)
        sums = T.alloc_buffer((group, WARPS, WARP), "float32", scope=_shared())
        for thread in _threads():
            total = T.alloc_buffer((group,), "float32", scope="local")
            for t in T.unroll(group):
                total[t] = T.float32(0)
            for i in T.serial((steps + WARPS - 1) // WARPS):
                if i * WARPS + thread // WARP < steps:
                    accumulate(x, weight, scales, total, tile, i * WARPS + thread // WARP, thread % WARP, first)
            for t in T.unroll(group):
                sums[t, thread // WARP, thread % WARP] = total[t]
        for lane in _threads():
            if lane < WARP:
                result = T.alloc_buffer((1,), "float32", scope="local")
                for t in T.unroll(group):
                    result[0] = sums[t, 0, lane]
                    for i in T.serial(WARPS - 1):
                        result[0] = result[0] + sums[t, i + 1, lane]
                    if scaled:
                        y[first + t, tile * TILE + lane] = result[0] * scales[tile, lane]
                    else:
                        y[first + t, tile * TILE + lane] = result[0]

    return product


def dense_float(rows: int, cols: int, tiles: int, parts: int, stored: str, lanes: int) -> PrimFunc:
    """y = W x for floating-point weights, see `dense.py`."""
    group = tokens_at_once(rows)

    def widened(weight: Any) -> Any:
        if stored == "uint16":
            return T.reinterpret("float32", T.Cast("uint32", weight) << T.uint32(16))
        return weight if stored == "float32" else T.Cast("float32", weight)

    @T.inline
    def accumulate(x, weight, scales, total, tile, i, lane, first):
        value = T.bind(widened(weight[tile, i, lane]))
        for t in T.unroll(group):
            total[t] = total[t] + value * x[first + t, tile // tiles * cols + i]

    product = _product(rows, parts, tiles, cols, accumulate, False)

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, parts * cols), "float32"),
        weight: T.Buffer((parts * tiles, cols, TILE), stored),
        y: T.Buffer((rows, parts * tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in _blocks(rows // group * parts * tiles):
            product(x, weight, weight, y, block)

    return kernel


def dense_int8_dequantized(rows: int, cols: int, tiles: int, lanes: int) -> PrimFunc:
    """y = W x for int8 codes, see `dense.py`: four inputs of an output are one word of a thread."""
    group, quads = tokens_at_once(rows), cols // 4

    @T.inline
    def accumulate(x, weight, scales, total, tile, i, lane, first):
        for b in T.unroll(4):
            value = T.bind(T.Cast("float32", weight[tile, i, lane * 4 + b]))
            for t in T.unroll(group):
                total[t] = total[t] + value * x[first + t, 4 * i + b]

    product = _product(rows, 1, tiles, quads, accumulate, True)

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, cols), "float32"),
        weight: T.Buffer((tiles, quads, 4 * TILE), "int8"),
        weight_scales: T.Buffer((tiles, TILE), "float32"),
        y: T.Buffer((rows, tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in _blocks(rows // group * tiles):
            product(x, weight, weight_scales, y, block)

    return kernel


def dense_int4_dequantized(rows: int, cols: int, tiles: int, lanes: int) -> PrimFunc:
    """y = W x for int4 codes, see `dense.py`: eight inputs of an output are one word of a thread."""
    group, groups = tokens_at_once(rows), -(-cols // GROUP)

    @T.inline
    def accumulate(x, weight, scales, total, tile, i, lane, first):
        for n in T.unroll(8):
            both = T.meta_var(T.Cast("int32", weight[tile, i // 8, i % 8, lane * 4 + n % 4]))
            code = T.bind(T.Cast("float32", ((both >> (n // 4 * 4)) & 15) - 8) * scales[tile, i // 8, lane])
            for t in T.unroll(group):
                total[t] = total[t] + code * x[first + t, 8 * i + n]

    product = _product(rows, 1, tiles, cols // 8, accumulate, False)

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, cols), "float32"),
        weight: T.Buffer((tiles, groups, GROUP // 8, 4 * TILE), "int8"),
        weight_scales: T.Buffer((tiles, groups, TILE), "float32"),
        y: T.Buffer((rows, tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in _blocks(rows // group * tiles):
            product(x, weight, weight_scales, y, block)

    return kernel


def layer_norm(rows: int, width: int, epsilon: float, lanes: int, every: int = 1) -> PrimFunc:
    """See `norms.py`."""

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows * every, width), "float32"),
        weight: T.Buffer((width,), "float32"),
        y: T.Buffer((rows, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in _blocks(rows):
            parts = T.alloc_buffer((THREADS,), "float32", scope=_shared())
            found = T.alloc_buffer((2,), "float32", scope=_shared())
            moments(x, row * every + (every - 1), 0, width, epsilon, parts, found)
            for thread in _threads():
                for i in T.serial((width + THREADS - 1) // THREADS):
                    at = T.meta_var(i * THREADS + thread)
                    if i * THREADS + thread < width:
                        y[row, at] = (x[row * every + (every - 1), at] - found[0]) * found[1] * weight[at]

    return kernel


def add(rows: int, width: int, addend_width: int, lanes: int) -> PrimFunc:
    """See `norms.py`."""

    @T.prim_func(s_tir=True)
    def kernel(addend: T.Buffer((rows, addend_width), "float32"), x: T.Buffer((rows, width), "float32")):
        T.func_attr({"tirx.noalias": True})
        for block in _blocks((rows * width + THREADS - 1) // THREADS):
            for thread in _threads():
                at = T.meta_var(block * THREADS + thread)
                if block * THREADS + thread < rows * width:
                    x[at // width, at % width] = x[at // width, at % width] + addend[at // width, at % width]

    return kernel


def embed(batch: int, hidden: int, observed_width: int, image: bool, epsilon: float, lanes: int) -> PrimFunc:
    """See `norms.py`: one block per token."""

    @T.prim_func(s_tir=True)
    def kernel(
        return_to_go: T.Buffer((batch,), "float32"),
        reward: T.Buffer((batch,), "float32"),
        observed: T.Buffer((batch, observed_width), "float32"),
        reward_weight: T.Buffer((hidden,), "float32"),
        reward_bias: T.Buffer((hidden,), "float32"),
        observation_bias: T.Buffer((hidden,), "float32"),
        return_weight: T.Buffer((hidden,), "float32"),
        return_bias: T.Buffer((hidden,), "float32"),
        norm_weight: T.Buffer((hidden,), "float32"),
        norm_bias: T.Buffer((hidden,), "float32"),
        x: T.Buffer((TOKENS * batch, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in _blocks(TOKENS * batch):
            row = T.meta_var(block // TOKENS)
            parts = T.alloc_buffer((THREADS,), "float32", scope=_shared())
            found = T.alloc_buffer((2,), "float32", scope=_shared())
            for thread in _threads():
                for i in T.serial((hidden + THREADS - 1) // THREADS):
                    at = T.meta_var(i * THREADS + thread)
                    if i * THREADS + thread < hidden:
                        if block % TOKENS == 0:
                            x[block, at] = reward_weight[at] * reward[row] + reward_bias[at]
                        if block % TOKENS == 1:
                            encoded = T.meta_var(observed[row, at] + observation_bias[at])
                            if image:
                                x[block, at] = relu(encoded)
                            else:
                                x[block, at] = encoded
                        if block % TOKENS == 2:
                            x[block, at] = return_weight[at] * return_to_go[row] + return_bias[at]
            moments(x, block, 0, hidden, epsilon, parts, found)
            for thread in _threads():
                for i in T.serial((hidden + THREADS - 1) // THREADS):
                    at = T.meta_var(i * THREADS + thread)
                    if i * THREADS + thread < hidden:
                        x[block, at] = (x[block, at] - found[0]) * found[1] * norm_weight[at] + norm_bias[at]

    return kernel


def head_norm(rows: int, heads: int, width: int, epsilon: float, lanes: int) -> PrimFunc:
    """See `norms.py`: one block per row and head."""

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, heads * width), "float32"),
        weight: T.Buffer((heads * width,), "float32"),
        y: T.Buffer((rows, heads * width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in _blocks(rows * heads):
            row = T.meta_var(block // heads)
            start = T.meta_var(block % heads * width)
            parts = T.alloc_buffer((THREADS,), "float32", scope=_shared())
            found = T.alloc_buffer((2,), "float32", scope=_shared())
            moments(x, row, start, width, epsilon, parts, found)
            for thread in _threads():
                for i in T.serial((width + THREADS - 1) // THREADS):
                    at = T.meta_var(start + i * THREADS + thread)
                    if i * THREADS + thread < width:
                        y[row, at] = (x[row, at] - found[0]) * found[1] * weight[at]

    return kernel


def gated_output(rows: int, heads: int, width: int, up_width: int, epsilon: float, lanes: int) -> PrimFunc:
    """See `norms.py`: one block per row and head."""
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
        for block in _blocks(rows * heads):
            row = T.meta_var(block // heads)
            start = T.meta_var(block % heads * width)
            parts = T.alloc_buffer((THREADS,), "float32", scope=_shared())
            found = T.alloc_buffer((2,), "float32", scope=_shared())
            moments(h, row, start, width, epsilon, parts, found)
            for thread in _threads():
                for i in T.serial((width + THREADS - 1) // THREADS):
                    at = T.meta_var(start + i * THREADS + thread)
                    if i * THREADS + thread < width:
                        normed = T.meta_var((h[row, at] - found[0]) * found[1] * weight[at])
                        y[row, at] = (normed + skip[at] * convolved[row, at]) * silu(up[row, inner + at])

    return kernel


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
    """See `mlstm.py`: one block per row and part of the channels; a thread per channel, then per gate and token."""
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
        for block in _blocks(batch * parts):
            row = T.meta_var(block // parts)
            part = T.meta_var(block % parts)
            # what neighbouring threads read of each other is handed on in shared memory
            mixed = T.alloc_buffer((TOKENS, channels), "float32", scope=_shared())
            plain = T.alloc_buffer((TOKENS, channels), "float32", scope=_shared())
            for thread in _threads():
                if thread < channels:
                    channel = T.meta_var(part * channels + thread)
                    convolve(up, row, channel, is_first, conv_weight, conv_bias, window, taps, convolved)
                    for t in T.unroll(TOKENS):
                        mixed[t, thread] = convolved[TOKENS * row + t, channel]
                        plain[t, thread] = up[TOKENS * row + t, channel]
            for thread in _threads():
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
            for thread in _threads():
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
    """See `mlstm.py`: one block per row and head; a thread adds up a share of the channels for every product."""
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
        for block in _blocks(batch * heads):
            row = T.meta_var(block // heads)
            head = T.meta_var(block % heads)
            # 0 to 2: decay; 3 to 8: weights (t, j); 9 to 11: exp(-m)
            scalars = T.alloc_buffer((12,), "float32", scope=_shared())
            products = T.alloc_buffer((9, THREADS), "float32", scope=_shared())
            sums = T.alloc_buffer((9,), "float32", scope=_shared())
            for thread in _threads():
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
            for thread in _threads():
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
            for thread in _threads():
                if thread < 9:
                    share = T.alloc_buffer((1,), "float32", scope="local")
                    share[0] = T.float32(0)
                    for i in T.serial(THREADS):
                        share[0] = share[0] + products[thread, i]
                    sums[thread] = share[0]
            for t in _threads():
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
    """See `mlstm.py`: one block per row, head and tile of columns; its rows among the warps."""
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
        for block in _blocks(batch * heads * tiles):
            row = T.meta_var(block // (heads * tiles))
            head = T.meta_var(block // tiles % heads)
            tile = T.meta_var(block % tiles)
            sums = T.alloc_buffer((TOKENS, per_block, columns), "float32", scope=_shared())
            for thread in _threads():
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
            for column in _threads():
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


def slstm_convolution(batch: int, hidden: int, taps: int, lanes: int) -> PrimFunc:
    """See `slstm.py`: one thread per row and channel."""

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((TOKENS * batch, hidden), "float32"),
        is_first: T.Buffer((batch,), "float32"),
        weight: T.Buffer((taps, hidden), "float32"),
        bias: T.Buffer((hidden,), "float32"),
        window: T.Buffer((batch, taps - 1, hidden), "float32"),
        y: T.Buffer((TOKENS * batch, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in _blocks((batch * hidden + THREADS - 1) // THREADS):
            for thread in _threads():
                job = T.meta_var(block * THREADS + thread)
                if block * THREADS + thread < batch * hidden:
                    convolve(x, job // hidden, job % hidden, is_first, weight, bias, window, taps, y)

    return kernel


def recurrence(batch: int, heads: int, width: int, lanes: int) -> PrimFunc:
    """See `slstm.py`: one block per row and head, one thread per output of the recurrent product, then per channel."""
    rows, hidden, tiles = TOKENS * batch, heads * width, 4 * width // TILE

    @T.prim_func(s_tir=True)
    def kernel(
        from_conv: T.Buffer((rows, 2 * hidden), "float32"),
        from_input: T.Buffer((rows, 2 * hidden), "float32"),
        recurrent: T.Buffer((heads * tiles, width, TILE), "float32"),
        bias: T.Buffer((heads, 4 * width), "float32"),
        is_first: T.Buffer((batch,), "float32"),
        y: T.Buffer((batch, hidden), "float32"),
        c: T.Buffer((batch, hidden), "float32"),
        n: T.Buffer((batch, hidden), "float32"),
        m: T.Buffer((batch, hidden), "float32"),
        h: T.Buffer((rows, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in _blocks(batch * heads):
            row = T.meta_var(block // heads)
            head = T.meta_var(block % heads)
            raw = T.alloc_buffer((4 * width,), "float32", scope=_shared())
            held = T.alloc_buffer((width,), "float32", scope=_shared())
            for thread in _threads():
                for i in T.serial((width + THREADS - 1) // THREADS):
                    channel = T.meta_var(i * THREADS + thread)
                    at = T.meta_var(head * width + i * THREADS + thread)
                    if i * THREADS + thread < width:
                        held[channel] = kept(y[row, at], is_first[row], 1)
                        c[row, at] = kept(c[row, at], is_first[row], 1)
                        n[row, at] = kept(n[row, at], is_first[row], 1)
                        m[row, at] = kept(m[row, at], is_first[row], 1, INITIAL_M)
            for t in T.serial(TOKENS):
                for thread in _threads():
                    for o in T.serial((4 * width + THREADS - 1) // THREADS):
                        output = T.meta_var(o * THREADS + thread)
                        if o * THREADS + thread < 4 * width:
                            total = T.alloc_buffer((1,), "float32", scope="local")
                            total[0] = bias[head, output]
                            for i in T.serial(width):
                                weight = T.meta_var(recurrent[head * tiles + output // TILE, i, output % TILE])
                                total[0] = total[0] + weight * held[i]
                            raw[output] = total[0]
                for thread in _threads():
                    for i in T.serial((width + THREADS - 1) // THREADS):
                        channel = T.meta_var(i * THREADS + thread)
                        at = T.meta_var(head * width + i * THREADS + thread)
                        token = T.meta_var(TOKENS * row + t)
                        if i * THREADS + thread < width:
                            if t > 0 or is_first[row] == T.float32(0):
                                first = T.meta_var(head * 2 * width + i * THREADS + thread)
                                entering = T.bind(from_conv[token, first] + raw[channel])
                                forget = T.bind(from_conv[token, first + width] + raw[width + channel])
                                z = T.bind(from_input[token, first] + raw[2 * width + channel])
                                o_gate = T.bind(from_input[token, first + width] + raw[3 * width + channel])
                                decayed = T.bind(log_sigmoid(forget) + m[row, at])
                                top = T.bind(T.max(entering, decayed))
                                entering_gate = T.bind(exponential(entering - top))
                                forget_gate = T.bind(exponential(decayed - top))
                                m[row, at] = top
                                c[row, at] = forget_gate * c[row, at] + entering_gate * hyperbolic_tangent(z)
                                n[row, at] = forget_gate * n[row, at] + entering_gate
                                held[channel] = sigmoid(o_gate) * c[row, at] / n[row, at]
                            h[token, at] = held[channel]
                            y[row, at] = held[channel]

    return kernel


def gated(rows: int, size: int, up_width: int, activation: str, lanes: int) -> PrimFunc:
    """See `slstm.py`: one thread per element."""
    function = ACTIVATIONS[activation]

    @T.prim_func(s_tir=True)
    def kernel(up: T.Buffer((rows, up_width), "float32"), y: T.Buffer((rows, size), "float32")):
        T.func_attr({"tirx.noalias": True})
        for block in _blocks((rows * size + THREADS - 1) // THREADS):
            for thread in _threads():
                at = T.meta_var(block * THREADS + thread)
                if block * THREADS + thread < rows * size:
                    row = T.meta_var(at // size)
                    y[row, at % size] = bind(up[row, at % size], function) * up[row, size + at % size]

    return kernel


def read_image(batch: int, height: int, width: int, channels: int) -> PrimFunc:
    """See `image.py`: one thread per number of the bordered map."""
    tall, wide_row = height + 2, width + 2
    count = batch * tall * wide_row * channels

    @T.prim_func(s_tir=True)
    def kernel(
        image: T.Buffer((batch, channels, height, width), "uint8"),
        y: T.Buffer((batch, tall, wide_row, channels), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in _blocks((count + THREADS - 1) // THREADS):
            for thread in _threads():
                at = T.meta_var(block * THREADS + thread)
                c = T.meta_var(at % channels)
                column = T.meta_var(at // channels % wide_row)
                row = T.meta_var(at // channels // wide_row % tall)
                number = T.meta_var(at // channels // wide_row // tall)
                if block * THREADS + thread < count:
                    y[number, row, column, c] = T.float32(0)
                    if row >= 1 and row <= height and column >= 1 and column <= width:
                        y[number, row, column, c] = T.Cast(
                            "float32", image[number, c, row - 1, column - 1]
                        ) / T.float32(255)

    return kernel


def image_convolution(
    batch: int, height: int, width: int, inputs: int, outputs: int, lanes: int, *, rectify: bool, residual: bool
) -> PrimFunc:
    """See `image.py`: one thread per number of the bordered map."""
    tall, wide_row = height + 2, width + 2
    count = batch * tall * wide_row * outputs
    activation = relu if rectify else (lambda x: x)

    @T.inline
    def number(x, weight, bias, addend, y, image, row, column, o):
        total = T.alloc_buffer((1,), "float32", scope="local")
        total[0] = T.float32(0)
        if row >= 1 and row <= height and column >= 1 and column <= width:
            total[0] = bias[o]
            for dy, dx, i in T.grid(3, 3, inputs):
                value = T.meta_var(activation(x[image, row - 1 + dy, column - 1 + dx, i]))
                total[0] = total[0] + weight[dy, dx, i, o] * value
            if residual:
                total[0] = total[0] + addend[image, row, column, o]
        y[image, row, column, o] = total[0]

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((batch, tall, wide_row, inputs), "float32"),
        weight: T.Buffer((3, 3, inputs, outputs), "float32"),
        bias: T.Buffer((outputs,), "float32"),
        y: T.Buffer((batch, tall, wide_row, outputs), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in _blocks((count + THREADS - 1) // THREADS):
            for thread in _threads():
                at = T.meta_var(block * THREADS + thread)
                pixel = T.meta_var(at // outputs)
                if block * THREADS + thread < count:
                    number(
                        x, weight, bias, x, y,
                        pixel // wide_row // tall, pixel // wide_row % tall, pixel % wide_row, at % outputs,
                    )  # fmt: skip

    @T.prim_func(s_tir=True)
    def kernel_with_residual(
        x: T.Buffer((batch, tall, wide_row, inputs), "float32"),
        weight: T.Buffer((3, 3, inputs, outputs), "float32"),
        bias: T.Buffer((outputs,), "float32"),
        addend: T.Buffer((batch, tall, wide_row, outputs), "float32"),
        y: T.Buffer((batch, tall, wide_row, outputs), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in _blocks((count + THREADS - 1) // THREADS):
            for thread in _threads():
                at = T.meta_var(block * THREADS + thread)
                pixel = T.meta_var(at // outputs)
                if block * THREADS + thread < count:
                    number(
                        x, weight, bias, addend, y,
                        pixel // wide_row // tall, pixel // wide_row % tall, pixel % wide_row, at % outputs,
                    )  # fmt: skip

    return kernel_with_residual if residual else kernel


def pool(batch: int, height: int, width: int, channels: int, lanes: int) -> PrimFunc:
    """See `image.py`: one thread per number of the bordered map."""
    new_height, new_width = (height + 1) // 2, (width + 1) // 2
    tall, wide_row = new_height + 2, new_width + 2
    count = batch * tall * wide_row * channels

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((batch, height + 2, width + 2, channels), "float32"),
        y: T.Buffer((batch, tall, wide_row, channels), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in _blocks((count + THREADS - 1) // THREADS):
            for thread in _threads():
                at = T.meta_var(block * THREADS + thread)
                c = T.meta_var(at % channels)
                column = T.meta_var(at // channels % wide_row)
                row = T.meta_var(at // channels // wide_row % tall)
                image = T.meta_var(at // channels // wide_row // tall)
                if block * THREADS + thread < count:
                    largest = T.alloc_buffer((1,), "float32", scope="local")
                    largest[0] = T.float32(0)
                    if row >= 1 and row <= new_height and column >= 1 and column <= new_width:
                        # the middle of the window is always inside
                        largest[0] = x[image, 2 * row - 1, 2 * column - 1, c]
                        for dy, dx in T.grid(3, 3):
                            # the border holds zeros, which are no part of the image
                            down = T.meta_var(2 * row - 2 + dy)
                            across = T.meta_var(2 * column - 2 + dx)
                            if down >= 1 and down <= height and across >= 1 and across <= width:
                                largest[0] = T.max(largest[0], x[image, down, across, c])
                    y[image, row, column, c] = largest[0]

    return kernel


def flatten(batch: int, height: int, width: int, channels: int) -> PrimFunc:
    """See `image.py`: one thread per number."""
    size = height * width * channels

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((batch, height + 2, width + 2, channels), "float32"),
        y: T.Buffer((batch, size), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in _blocks((batch * size + THREADS - 1) // THREADS):
            for thread in _threads():
                at = T.meta_var(block * THREADS + thread)
                pixel = T.meta_var(at % size // channels)
                if block * THREADS + thread < batch * size:
                    y[at // size, at % size] = relu(x[at // size, pixel // width + 1, pixel % width + 1, at % channels])

    return kernel


def choose(
    batch: int, actions: int, tokens: int, logits_width: int, *, discrete: bool, discrete_actions: int, channels: int
) -> PrimFunc:
    """See `action.py`: one thread per row and action."""
    kind = "int64" if discrete else "float32"

    @T.prim_func(s_tir=True)
    def kernel(
        products: T.Buffer((batch, logits_width), "float32"),
        bias: T.Buffer((actions * tokens,), "float32"),
        action: T.Buffer((batch, actions), kind),
        logits: T.Buffer((batch, actions * tokens), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in _blocks(batch):
            for number in _threads():
                if number < actions:
                    best = T.alloc_buffer((1,), "int32", scope="local")
                    best[0] = 0
                    for i in T.serial(tokens):
                        at = T.meta_var(number * tokens + i)
                        logits[row, at] = products[row, at] + bias[at]
                        if logits[row, at] > logits[row, number * tokens + best[0]]:
                            best[0] = i
                    if discrete:
                        action[row, number] = T.Cast("int64", best[0])
                    else:
                        bin = T.meta_var(T.Cast("float32", T.max(best[0] - discrete_actions, 0)))
                        action[row, number] = bin * T.float32(2.0 / channels) - T.float32(1)

    return kernel
