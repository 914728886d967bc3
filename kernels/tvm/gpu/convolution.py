"""Causal convolutions on a GPU, see `kernels/tvm/cpu/convolution.py`."""

from tvm.script import tirx as T

from lram_export.kernels.tvm.cpu.convolution import kept
from lram_export.kernels.tvm.functions import silu


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
