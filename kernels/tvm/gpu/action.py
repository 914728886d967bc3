"""From the head's logits to the action on a GPU, see `kernels/tvm/cpu/action.py`."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.gpu.threads import THREADS, blocks, threads


def choose(
    batch: int, actions: int, tokens: int, logits_width: int, *, discrete: bool, discrete_actions: int, channels: int
) -> PrimFunc:
    """See `cpu/action.py`: one thread per row and action."""
    kind = "int64" if discrete else "float32"

    @T.prim_func(s_tir=True)
    def kernel(
        products: T.Buffer((batch, logits_width), "float32"),
        bias: T.Buffer((actions * tokens,), "float32"),
        action: T.Buffer((batch, actions), kind),
        logits: T.Buffer((batch, actions * tokens), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in blocks(batch):
            for thread in threads():
                for i in T.serial((actions + THREADS - 1) // THREADS):
                    number = T.meta_var(i * THREADS + thread)
                    if i * THREADS + thread < actions:
                        best = T.alloc_buffer((1,), "int32", scope="local")
                        best[0] = 0
                        for token in T.serial(tokens):
                            at = T.meta_var(number * tokens + token)
                            logits[row, at] = products[row, at] + bias[at]
                            if logits[row, at] > logits[row, number * tokens + best[0]]:
                                best[0] = token
                        if discrete:
                            action[row, number] = T.Cast("int64", best[0])
                        else:
                            bin = T.meta_var(T.Cast("float32", T.max(best[0] - discrete_actions, 0)))
                            action[row, number] = bin * T.float32(2.0 / channels) - T.float32(1)

    return kernel
