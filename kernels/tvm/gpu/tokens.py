"""What embeds the tokens of a step on a GPU, see `kernels/tvm/cpu/tokens.py`: one block per row."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.functions import relu
from lram_export.kernels.tvm.gpu.norms import moments
from lram_export.kernels.tvm.gpu.threads import FOLD, THREADS, blocks, shared, threads


@T.inline
def normalize(x, row, hidden, epsilon, norm_weight, norm_bias):
    """Layer norm of a row, in place."""
    parts = T.alloc_buffer((THREADS,), "float32", scope=shared())
    folded = T.alloc_buffer((FOLD,), "float32", scope=shared())
    found = T.alloc_buffer((2,), "float32", scope=shared())
    moments(x, row, 0, hidden, epsilon, parts, folded, found)
    for thread in threads():
        for i in T.serial((hidden + THREADS - 1) // THREADS):
            at = T.meta_var(i * THREADS + thread)
            if i * THREADS + thread < hidden:
                x[row, at] = (x[row, at] - found[0]) * found[1] * norm_weight[at] + norm_bias[at]


def embed_number(batch: int, tokens: int, place: int, hidden: int, epsilon: float, lanes: int) -> PrimFunc:
    """See `cpu/tokens.py`."""

    @T.prim_func(s_tir=True)
    def kernel(
        number: T.Buffer((batch,), "float32"),
        weight: T.Buffer((hidden,), "float32"),
        bias: T.Buffer((hidden,), "float32"),
        norm_weight: T.Buffer((hidden,), "float32"),
        norm_bias: T.Buffer((hidden,), "float32"),
        x: T.Buffer((tokens * batch, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in blocks(batch):
            for thread in threads():
                for i in T.serial((hidden + THREADS - 1) // THREADS):
                    at = T.meta_var(i * THREADS + thread)
                    if i * THREADS + thread < hidden:
                        x[tokens * row + place, at] = weight[at] * number[row] + bias[at]
            normalize(x, tokens * row + place, hidden, epsilon, norm_weight, norm_bias)

    return kernel


def embed_vector(
    batch: int, tokens: int, place: int, hidden: int, width: int, rectify: bool, epsilon: float, lanes: int
) -> PrimFunc:
    """See `cpu/tokens.py`."""
    activation = relu if rectify else (lambda value: value)

    @T.prim_func(s_tir=True)
    def kernel(
        product: T.Buffer((batch, width), "float32"),
        bias: T.Buffer((hidden,), "float32"),
        norm_weight: T.Buffer((hidden,), "float32"),
        norm_bias: T.Buffer((hidden,), "float32"),
        x: T.Buffer((tokens * batch, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in blocks(batch):
            for thread in threads():
                for i in T.serial((hidden + THREADS - 1) // THREADS):
                    at = T.meta_var(i * THREADS + thread)
                    if i * THREADS + thread < hidden:
                        x[tokens * row + place, at] = activation(product[row, at] + bias[at])
            normalize(x, tokens * row + place, hidden, epsilon, norm_weight, norm_bias)

    return kernel


def embed_constant(batch: int, tokens: int, place: int, hidden: int, lanes: int) -> PrimFunc:
    """See `cpu/tokens.py`: one thread per number."""

    @T.prim_func(s_tir=True)
    def kernel(token: T.Buffer((hidden,), "float32"), x: T.Buffer((tokens * batch, hidden), "float32")):
        T.func_attr({"tirx.noalias": True})
        for block in blocks((batch * hidden + THREADS - 1) // THREADS):
            for thread in threads():
                at = T.meta_var(block * THREADS + thread)
                if block * THREADS + thread < batch * hidden:
                    x[tokens * (at // hidden) + place, at % hidden] = token[at % hidden]

    return kernel


def pick(batch: int, tokens: int, place: int, width: int, lanes: int) -> PrimFunc:
    """See `cpu/tokens.py`: one thread per number."""

    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((tokens * batch, width), "float32"), y: T.Buffer((batch, width), "float32")):
        T.func_attr({"tirx.noalias": True})
        for block in blocks((batch * width + THREADS - 1) // THREADS):
            for thread in threads():
                at = T.meta_var(block * THREADS + thread)
                if block * THREADS + thread < batch * width:
                    y[at // width, at % width] = x[tokens * (at // width) + place, at % width]

    return kernel


def narrow(rows: int, width: int, columns: int, lanes: int) -> PrimFunc:
    """See `cpu/tokens.py`: one thread per number."""

    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((rows, width), "float32"), y: T.Buffer((rows, columns), "float32")):
        T.func_attr({"tirx.noalias": True})
        for block in blocks((rows * columns + THREADS - 1) // THREADS):
            for thread in threads():
                at = T.meta_var(block * THREADS + thread)
                if block * THREADS + thread < rows * columns:
                    y[at // columns, at % columns] = x[at // columns, at % columns]

    return kernel
