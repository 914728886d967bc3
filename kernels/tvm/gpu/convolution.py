"""Causal convolutions on a GPU, see `kernels/tvm/cpu/convolution.py`."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.convolution import kept
from lram_export.kernels.tvm.functions import silu
from lram_export.kernels.tvm.gpu.threads import THREADS, blocks, threads


@T.inline
def convolve(x, row, channel, is_first, weight, bias, window, taps, tokens, skipped, y):
    """Causal convolution and SiLU of one channel for the tokens of a row; moves the window on."""
    inputs = T.alloc_buffer((taps - 1 + tokens,), "float32", scope="local")
    for j in T.unroll(taps - 1):
        inputs[j] = kept(window[row, j, channel], is_first[row], 1)
    for t in T.unroll(skipped):
        inputs[taps - 1 + t] = kept(x[tokens * row + t, channel], is_first[row], 1)
    for t in T.unroll(tokens - skipped):
        inputs[taps - 1 + skipped + t] = x[tokens * row + skipped + t, channel]
    for t in T.unroll(tokens):
        total = T.alloc_buffer((1,), "float32", scope="local")
        total[0] = bias[channel]
        for tap in T.unroll(taps):
            total[0] = total[0] + inputs[t + tap] * weight[tap, channel]
        y[tokens * row + t, channel] = silu(total[0])
    for j in T.unroll(taps - 1):
        window[row, j, channel] = inputs[j + tokens]


def causal_convolution(
    batch: int, tokens: int, skipped: int, channels: int, width: int, taps: int, lanes: int
) -> PrimFunc:
    """See `cpu/convolution.py`: one thread per row and channel."""

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
        for block in blocks((batch * channels + THREADS - 1) // THREADS):
            for thread in threads():
                job = T.meta_var(block * THREADS + thread)
                if block * THREADS + thread < batch * channels:
                    convolve(
                        x, job // channels, job % channels, is_first, weight, bias, window, taps, tokens, skipped, y
                    )

    return kernel
