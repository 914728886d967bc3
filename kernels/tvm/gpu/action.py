"""From the head's logits to the action on a GPU, see `kernels/tvm/cpu/action.py`."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.gpu.threads import FOLD, THREADS, blocks, shared, threads


@T.inline
def keep_better(value, index, at, other, other_index):
    """The larger of two numbers, and of equal ones the first."""
    number = T.bind(other)  # a condition may not read what is shared
    its_index = T.bind(other_index)
    if T.Or(number > value[at], T.And(number == value[at], its_index < index[at])):
        value[at] = number
        index[at] = its_index


def choose(
    batch: int, actions: int, tokens: int, logits_width: int, *, discrete: bool, discrete_actions: int, channels: int
) -> PrimFunc:
    """See `cpu/action.py`: a block per row and action, and its tokens among the threads."""
    kind = "int64" if discrete else "float32"

    @T.prim_func(s_tir=True)
    def kernel(
        products: T.Buffer((batch, logits_width), "float32"),
        bias: T.Buffer((actions * tokens,), "float32"),
        logits: T.Buffer((batch, actions * tokens), "float32"),
        action: T.Buffer((batch, actions), kind),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(batch * actions):
            row = T.meta_var(block // actions)
            number = T.meta_var(block % actions)
            values = T.alloc_buffer((THREADS,), "float32", scope=shared())
            indices = T.alloc_buffer((THREADS,), "int32", scope=shared())
            folded = T.alloc_buffer((FOLD,), "float32", scope=shared())
            folded_indices = T.alloc_buffer((FOLD,), "int32", scope=shared())
            for thread in threads():
                value = T.alloc_buffer((1,), "float32", scope="local")
                index = T.alloc_buffer((1,), "int32", scope="local")
                first = T.meta_var(number * tokens + T.min(thread, tokens - 1))  # some may have none of their own
                value[0] = products[row, first] + bias[first]
                index[0] = T.min(thread, tokens - 1)
                for i in T.serial((tokens + THREADS - 1) // THREADS):
                    at = T.meta_var(number * tokens + i * THREADS + thread)
                    if i * THREADS + thread < tokens:
                        logit = T.bind(products[row, at] + bias[at])
                        logits[row, at] = logit
                        keep_better(value, index, 0, logit, i * THREADS + thread)
                values[thread] = value[0]
                indices[thread] = index[0]
            for thread in threads():
                if thread < FOLD:
                    value = T.alloc_buffer((1,), "float32", scope="local")
                    index = T.alloc_buffer((1,), "int32", scope="local")
                    value[0] = values[thread]
                    index[0] = indices[thread]
                    for i in T.unroll(THREADS // FOLD - 1):
                        other = T.meta_var(FOLD * (i + 1) + thread)
                        keep_better(value, index, 0, values[other], indices[other])
                    folded[thread] = value[0]
                    folded_indices[thread] = index[0]
            for thread in threads():
                if thread < 1:
                    value = T.alloc_buffer((1,), "float32", scope="local")
                    index = T.alloc_buffer((1,), "int32", scope="local")
                    value[0] = folded[0]
                    index[0] = folded_indices[0]
                    for i in T.unroll(FOLD - 1):
                        keep_better(value, index, 0, folded[i + 1], folded_indices[i + 1])
                    if discrete:
                        action[row, number] = T.Cast("int64", index[0])
                    else:
                        bin = T.meta_var(T.Cast("float32", T.max(index[0] - discrete_actions, 0)))
                        action[row, number] = bin * T.float32(2.0 / channels) - T.float32(1)

    return kernel
