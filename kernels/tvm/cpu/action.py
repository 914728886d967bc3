"""From the head's logits to the action."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.loops import STACK


def choose(
    batch: int, actions: int, tokens: int, logits_width: int, *, discrete: bool, discrete_actions: int, channels: int
) -> PrimFunc:
    """Bias, and the first of the largest logits per action.

    Discrete: action (batch, 1) int64 and action_logits (batch, tokens); continuous: action (batch, actions) float32,
    the left edge of the chosen bin of [-1, 1], and action_logits (batch, actions, tokens). Several actions
    that are discrete are numbers of tokens, for ``look_up``.
    """
    kind = "int64" if discrete else "float32"

    @T.prim_func(s_tir=True)
    def kernel(
        products: T.Buffer((batch, logits_width), "float32"),
        bias: T.Buffer((actions * tokens,), "float32"),
        logits: T.Buffer((batch, actions * tokens), "float32"),
        action: T.Buffer((batch, actions), kind),
    ):
        T.func_attr({"tirx.noalias": True})
        for row, number in T.grid(batch, actions):
            best = T.alloc_buffer((1,), "int32", scope=STACK)
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
