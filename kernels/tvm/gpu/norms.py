"""Norms for a GPU, see `kernels/tvm/cpu/norms.py`: a block per row, or per row and head."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.gpu.threads import FOLD, THREADS, blocks, shared, threads


@T.inline
def add_up(parts, folded, width, total, place, finish):
    """Mean over ``width`` of the numbers that the threads left in shared memory."""
    for thread in threads():
        if thread < FOLD:
            share = T.alloc_buffer((1,), "float32", scope="local")
            share[0] = parts[thread]
            for i in T.unroll(THREADS // FOLD - 1):
                share[0] = share[0] + parts[FOLD * (i + 1) + thread]
            folded[thread] = share[0]
    for thread in threads():
        if thread < 1:
            result = T.alloc_buffer((1,), "float32", scope="local")
            result[0] = folded[0]
            for i in T.unroll(FOLD - 1):
                result[0] = result[0] + folded[i + 1]
            total[place] = finish(result[0] / T.float32(width))


@T.inline
def moments(x, row, start, width, epsilon, parts, folded, found):
    """Mean and reciprocal deviation of ``x[row, start : start + width]`` into ``found``, in shared memory."""
    for thread in threads():
        total = T.alloc_buffer((1,), "float32", scope="local")
        total[0] = T.float32(0)
        for i in T.serial((width + THREADS - 1) // THREADS):
            if i * THREADS + thread < width:
                total[0] = total[0] + x[row, start + i * THREADS + thread]
        parts[thread] = total[0]
    add_up(parts, folded, width, found, 0, lambda mean: mean)
    for thread in threads():
        total = T.alloc_buffer((1,), "float32", scope="local")
        total[0] = T.float32(0)
        for i in T.serial((width + THREADS - 1) // THREADS):
            if i * THREADS + thread < width:
                difference = T.bind(x[row, start + i * THREADS + thread] - found[0])
                total[0] = total[0] + difference * difference
        parts[thread] = total[0]
    add_up(parts, folded, width, found, 1, lambda variance: T.float32(1) / T.sqrt(variance + T.float32(epsilon)))


def layer_norm(rows: int, width: int, epsilon: float, lanes: int, every: int = 1, place: int = 0) -> PrimFunc:
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
            folded = T.alloc_buffer((FOLD,), "float32", scope=shared())
            found = T.alloc_buffer((2,), "float32", scope=shared())
            moments(x, row * every + place, 0, width, epsilon, parts, folded, found)
            for thread in threads():
                for i in T.serial((width + THREADS - 1) // THREADS):
                    at = T.meta_var(i * THREADS + thread)
                    if i * THREADS + thread < width:
                        y[row, at] = (x[row * every + place, at] - found[0]) * found[1] * weight[at]

    return kernel


def rms_norm(rows: int, width: int, epsilon: float, lanes: int, every: int = 1, place: int = 0) -> PrimFunc:
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
            folded = T.alloc_buffer((FOLD,), "float32", scope=shared())
            found = T.alloc_buffer((1,), "float32", scope=shared())
            for thread in threads():
                total = T.alloc_buffer((1,), "float32", scope="local")
                total[0] = T.float32(0)
                for i in T.serial((width + THREADS - 1) // THREADS):
                    if i * THREADS + thread < width:
                        value = T.bind(x[row * every + place, i * THREADS + thread])
                        total[0] = total[0] + value * value
                parts[thread] = total[0]
            add_up(parts, folded, width, found, 0, lambda mean: T.float32(1) / T.sqrt(mean + T.float32(epsilon)))
            for thread in threads():
                for i in T.serial((width + THREADS - 1) // THREADS):
                    at = T.meta_var(i * THREADS + thread)
                    if i * THREADS + thread < width:
                        y[row, at] = x[row * every + place, at] * found[0] * weight[at]

    return kernel


def add_bias(rows: int, width: int, x_width: int, lanes: int) -> PrimFunc:
    """See `cpu/norms.py`."""

    @T.prim_func(s_tir=True)
    def kernel(bias: T.Buffer((width,), "float32"), x: T.Buffer((rows, x_width), "float32")):
        T.func_attr({"tirx.noalias": True})
        for block in blocks((rows * width + THREADS - 1) // THREADS):
            for thread in threads():
                at = T.meta_var(block * THREADS + thread)
                if block * THREADS + thread < rows * width:
                    x[at // width, at % width] = x[at // width, at % width] + bias[at % width]

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
