"""Causal convolutions, and what kernels read of a state where an episode starts."""

import math
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.loops import STACK, jobs_loop
from lram_export.kernels.tvm.functions import silu, span, wide


def kept(value: Any, is_first: Any, lanes: int, initial: float = 0.0) -> Any:
    """A value of the state, or its initial value where an episode starts, whatever the state held."""
    return T.Select(wide(is_first > T.float32(0), lanes), wide(T.float32(initial), lanes), value)


@T.inline
def convolve(x, row, channel, is_first, weight, bias, window, taps, tokens, skipped, lanes, y):
    """Causal convolution and SiLU of a vector of channels for the tokens of a row; moves the window on.

    The first ``skipped`` tokens are 0 where an episode starts. x, y: (tokens * batch, channels or more); window:
    (batch, taps - 1, channels); weight: (taps, channels).
    """
    at = T.meta_var(span(channel, lanes))
    inputs = T.alloc_buffer((taps - 1 + tokens, lanes), "float32", scope=STACK)
    every = T.meta_var(span(0, lanes))
    for j in T.unroll(taps - 1):
        inputs[j, every] = kept(window[row, j, at], is_first[row], lanes)
    for t in T.unroll(skipped):
        inputs[taps - 1 + t, every] = kept(x[tokens * row + t, at], is_first[row], lanes)
    for t in T.unroll(tokens - skipped):
        inputs[taps - 1 + skipped + t, every] = x[tokens * row + skipped + t, at]
    for t in T.unroll(tokens):
        total = T.alloc_buffer((lanes,), "float32", scope=STACK)
        total[every] = bias[at]
        for tap in T.unroll(taps):
            total[every] = total[every] + inputs[t + tap, every] * weight[tap, at]
        y[tokens * row + t, at] = silu(total[every])
    for j in T.unroll(taps - 1):
        window[row, j, at] = inputs[j + tokens, every]


def causal_convolution(
    batch: int, tokens: int, skipped: int, channels: int, width: int, taps: int, lanes: int
) -> PrimFunc:
    """Causal convolution and SiLU of the first ``channels`` columns of x (tokens * batch, width) -> y; the window
    (batch, taps - 1, channels) moves on in place."""
    lanes = math.gcd(channels, lanes)
    vectors = channels // lanes

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((tokens * batch, width), "float32"),
        is_first: T.Buffer((batch,), "float32"),
        weight: T.Buffer((taps, channels), "float32"),
        bias: T.Buffer((channels,), "float32"),
        window: T.Buffer((batch, taps - 1, channels), "float32"),
        y: T.Buffer((tokens * batch, channels), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for job in jobs_loop(batch * vectors, 4 * batch * channels * (2 * tokens + 3 * taps)):
            row = T.meta_var(job // vectors)
            channel = T.meta_var(job % vectors * lanes)
            convolve(x, row, channel, is_first, weight, bias, window, taps, tokens, skipped, lanes, y)

    return kernel
