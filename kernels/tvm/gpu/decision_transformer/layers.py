"""What lies between the products of a Decision Transformer's block, for a GPU, see `kernels/tvm/cpu`."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.functions import ACTIVATIONS, bind
from lram_export.kernels.tvm.gpu.norms import moments
from lram_export.kernels.tvm.gpu.threads import FOLD, THREADS, blocks, shared, threads


def add_norm(rows: int, width: int, addend_width: int, epsilon: float, lanes: int) -> PrimFunc:
    """See `cpu/decision_transformer/layers.py`: a block per row; a thread has the same columns in every loop."""

    @T.prim_func(s_tir=True)
    def kernel(
        addend: T.Buffer((rows, addend_width), "float32"),
        bias: T.Buffer((width,), "float32"),
        norm_weight: T.Buffer((width,), "float32"),
        norm_bias: T.Buffer((width,), "float32"),
        x: T.Buffer((rows, width), "float32"),
        y: T.Buffer((rows, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in blocks(rows):
            parts = T.alloc_buffer((THREADS,), "float32", scope=shared())
            folded = T.alloc_buffer((FOLD,), "float32", scope=shared())
            found = T.alloc_buffer((2,), "float32", scope=shared())
            for thread in threads():
                for i in T.serial((width + THREADS - 1) // THREADS):
                    at = T.meta_var(i * THREADS + thread)
                    if i * THREADS + thread < width:
                        x[row, at] = x[row, at] + addend[row, at] + bias[at]
            moments(x, row, 0, width, epsilon, parts, folded, found)
            for thread in threads():
                for i in T.serial((width + THREADS - 1) // THREADS):
                    at = T.meta_var(i * THREADS + thread)
                    if i * THREADS + thread < width:
                        y[row, at] = (x[row, at] - found[0]) * found[1] * norm_weight[at] + norm_bias[at]

    return kernel


def activate(rows: int, size: int, width: int, activation: str, lanes: int) -> PrimFunc:
    """See `cpu/decision_transformer/layers.py`: a thread per element."""
    function = ACTIVATIONS[activation]

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, width), "float32"), bias: T.Buffer((size,), "float32"), y: T.Buffer((rows, size), "float32")
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks((rows * size + THREADS - 1) // THREADS):
            for thread in threads():
                at = T.meta_var(block * THREADS + thread)
                if block * THREADS + thread < rows * size:
                    y[at // size, at % size] = bind(x[at // size, at % size] + bias[at % size], function)

    return kernel
