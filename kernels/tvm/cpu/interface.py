"""What an interface has a step do around the network: normalize what goes in, look up what comes out."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.loops import rows_loop


def normalize_observation(batch: int, size: int) -> PrimFunc:
    """(observation - mean) / deviation, clipped, (batch, size); where nothing is, the clip is the largest float."""

    @T.prim_func(s_tir=True)
    def kernel(
        observation: T.Buffer((batch, size), "float32"),
        mean: T.Buffer((size,), "float32"),
        deviation: T.Buffer((size,), "float32"),
        clip: T.Buffer((1,), "float32"),
        normalized: T.Buffer((batch, size), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(batch, size):
            for i in T.serial(size):
                value = T.meta_var((observation[row, i] - mean[i]) / deviation[i])
                normalized[row, i] = T.min(T.max(value, -clip[0]), clip[0])

    return kernel


def look_up(batch: int, actions: int, tokens: int) -> PrimFunc:
    """The value of every chosen token (batch, actions): values (actions * tokens) -> action (batch, actions)."""

    @T.prim_func(s_tir=True)
    def kernel(
        chosen: T.Buffer((batch, actions), "int64"),
        values: T.Buffer((actions * tokens,), "float32"),
        action: T.Buffer((batch, actions), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row, number in T.grid(batch, actions):
            action[row, number] = values[number * tokens + T.Cast("int32", chosen[row, number])]

    return kernel
