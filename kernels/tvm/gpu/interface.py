"""What an interface has a step do around the network, see `kernels/tvm/cpu/interface.py`: one thread per number."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.gpu.threads import THREADS, blocks, threads


def normalize_observation(batch: int, size: int) -> PrimFunc:
    """See `cpu/interface.py`."""

    @T.prim_func(s_tir=True)
    def kernel(
        observation: T.Buffer((batch, size), "float32"),
        mean: T.Buffer((size,), "float32"),
        deviation: T.Buffer((size,), "float32"),
        clip: T.Buffer((1,), "float32"),
        normalized: T.Buffer((batch, size), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks((batch * size + THREADS - 1) // THREADS):
            for thread in threads():
                at = T.meta_var(block * THREADS + thread)
                row = T.meta_var(at // size)
                i = T.meta_var(at % size)
                if block * THREADS + thread < batch * size:
                    value = T.meta_var((observation[row, i] - mean[i]) / deviation[i])
                    normalized[row, i] = T.min(T.max(value, -clip[0]), clip[0])

    return kernel


def look_up(batch: int, actions: int, tokens: int) -> PrimFunc:
    """See `cpu/interface.py`."""

    @T.prim_func(s_tir=True)
    def kernel(
        chosen: T.Buffer((batch, actions), "int64"),
        values: T.Buffer((actions * tokens,), "float32"),
        action: T.Buffer((batch, actions), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks((batch * actions + THREADS - 1) // THREADS):
            for thread in threads():
                at = T.meta_var(block * THREADS + thread)
                row = T.meta_var(at // actions)
                number = T.meta_var(at % actions)
                if block * THREADS + thread < batch * actions:
                    action[row, number] = values[number * tokens + T.Cast("int32", chosen[row, number])]

    return kernel
