"""Norms for a GPU, see `kernels/tvm/cpu/norms.py`: a block per row, or per row and head."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.mlstm import TOKENS
from lram_export.kernels.tvm.functions import relu, silu
from lram_export.kernels.tvm.gpu.threads import THREADS, blocks, shared, threads


@T.inline
def add_up(parts, count, width, total, place, finish):
    """Sum of ``count`` numbers that threads left in shared memory, by one thread: they are few."""
    for thread in threads():
        if thread < 1:
            result = T.alloc_buffer((1,), "float32", scope="local")
            result[0] = parts[0]
            for i in T.serial(count - 1):
                result[0] = result[0] + parts[i + 1]
            total[place] = finish(result[0] / T.float32(width))


@T.inline
def moments(x, row, start, width, epsilon, parts, found):
    """Mean and reciprocal deviation of ``x[row, start : start + width]`` into ``found``, in shared memory."""
    for thread in threads():
        total = T.alloc_buffer((1,), "float32", scope="local")
        total[0] = T.float32(0)
        for i in T.serial((width + THREADS - 1) // THREADS):
            if i * THREADS + thread < width:
                total[0] = total[0] + x[row, start + i * THREADS + thread]
        parts[thread] = total[0]
    add_up(parts, THREADS, width, found, 0, lambda mean: mean)
    for thread in threads():
        total = T.alloc_buffer((1,), "float32", scope="local")
        total[0] = T.float32(0)
        for i in T.serial((width + THREADS - 1) // THREADS):
            if i * THREADS + thread < width:
                difference = T.bind(x[row, start + i * THREADS + thread] - found[0])
                total[0] = total[0] + difference * difference
        parts[thread] = total[0]
    add_up(parts, THREADS, width, found, 1, lambda variance: T.float32(1) / T.sqrt(variance + T.float32(epsilon)))


def layer_norm(rows: int, width: int, epsilon: float, lanes: int, every: int = 1) -> PrimFunc:
    """See `cpu/norms.py`."""

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows * every, width), "float32"),
        weight: T.Buffer((width,), "float32"),
        y: T.Buffer((rows, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in blocks(rows):
            parts = T.alloc_buffer((THREADS,), "float32", scope=shared())
            found = T.alloc_buffer((2,), "float32", scope=shared())
            moments(x, row * every + (every - 1), 0, width, epsilon, parts, found)
            for thread in threads():
                for i in T.serial((width + THREADS - 1) // THREADS):
                    at = T.meta_var(i * THREADS + thread)
                    if i * THREADS + thread < width:
                        y[row, at] = (x[row * every + (every - 1), at] - found[0]) * found[1] * weight[at]

    return kernel


def add(rows: int, width: int, addend_width: int, lanes: int) -> PrimFunc:
    """See `cpu/norms.py`."""

    @T.prim_func(s_tir=True)
    def kernel(addend: T.Buffer((rows, addend_width), "float32"), x: T.Buffer((rows, width), "float32")):
        T.func_attr({"tirx.noalias": True})
        for block in blocks((rows * width + THREADS - 1) // THREADS):
            for thread in threads():
                at = T.meta_var(block * THREADS + thread)
                if block * THREADS + thread < rows * width:
                    x[at // width, at % width] = x[at // width, at % width] + addend[at // width, at % width]

    return kernel


def embed(batch: int, hidden: int, observed_width: int, image: bool, epsilon: float, lanes: int) -> PrimFunc:
    """See `cpu/norms.py`: one block per token."""

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
        for block in blocks(TOKENS * batch):
            row = T.meta_var(block // TOKENS)
            parts = T.alloc_buffer((THREADS,), "float32", scope=shared())
            found = T.alloc_buffer((2,), "float32", scope=shared())
            for thread in threads():
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
            for thread in threads():
                for i in T.serial((hidden + THREADS - 1) // THREADS):
                    at = T.meta_var(i * THREADS + thread)
                    if i * THREADS + thread < hidden:
                        x[block, at] = (x[block, at] - found[0]) * found[1] * norm_weight[at] + norm_bias[at]

    return kernel


def head_norm(rows: int, heads: int, width: int, epsilon: float, lanes: int) -> PrimFunc:
    """See `cpu/norms.py`: one block per row and head."""

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, heads * width), "float32"),
        weight: T.Buffer((heads * width,), "float32"),
        y: T.Buffer((rows, heads * width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(rows * heads):
            row = T.meta_var(block // heads)
            start = T.meta_var(block % heads * width)
            parts = T.alloc_buffer((THREADS,), "float32", scope=shared())
            found = T.alloc_buffer((2,), "float32", scope=shared())
            moments(x, row, start, width, epsilon, parts, found)
            for thread in threads():
                for i in T.serial((width + THREADS - 1) // THREADS):
                    at = T.meta_var(start + i * THREADS + thread)
                    if i * THREADS + thread < width:
                        y[row, at] = (x[row, at] - found[0]) * found[1] * weight[at]

    return kernel


def gated_output(rows: int, heads: int, width: int, up_width: int, epsilon: float, lanes: int) -> PrimFunc:
    """See `cpu/norms.py`: one block per row and head."""
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
            found = T.alloc_buffer((2,), "float32", scope=shared())
            moments(h, row, start, width, epsilon, parts, found)
            for thread in threads():
                for i in T.serial((width + THREADS - 1) // THREADS):
                    at = T.meta_var(start + i * THREADS + thread)
                    if i * THREADS + thread < width:
                        normed = T.meta_var((h[row, at] - found[0]) * found[1] * weight[at])
                        y[row, at] = (normed + skip[at] * convolved[row, at]) * silu(up[row, inner + at])

    return kernel
