"""Layer norm, and what is fused around it: the residual sum before it, the embedding, the heads' gated output."""

import math

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.loops import rows_loop
from lram_export.kernels.tvm.functions import lane_sum, relu, silu, span, wide


@T.inline
def moments(x, row, start, width, epsilon, lanes, found):
    """Mean and reciprocal deviation of ``x[row, start : start + width]`` into ``found``."""
    total = T.alloc_buffer((lanes,), "float32", scope="local")
    total[span(0, lanes)] = wide(T.float32(0), lanes)
    for i in T.serial(width // lanes):
        total[span(0, lanes)] = total[span(0, lanes)] + x[row, span(start + i * lanes, lanes)]
    found[0] = lane_sum(total[span(0, lanes)]) / T.float32(width)
    total[span(0, lanes)] = wide(T.float32(0), lanes)
    for i in T.serial(width // lanes):
        difference = T.bind(x[row, span(start + i * lanes, lanes)] - wide(found[0], lanes))
        total[span(0, lanes)] = total[span(0, lanes)] + difference * difference
    found[1] = T.float32(1) / T.sqrt(lane_sum(total[span(0, lanes)]) / T.float32(width) + T.float32(epsilon))


def layer_norm(rows: int, width: int, epsilon: float, lanes: int, every: int = 1) -> PrimFunc:
    """Norm of every ``every``-th row, the last of each group: x (rows * every, width), weight (width) -> y."""

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows * every, width), "float32"),
        weight: T.Buffer((width,), "float32"),
        y: T.Buffer((rows, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(rows, width):
            found = T.alloc_buffer((2,), "float32", scope="local")
            moments(x, row * every + (every - 1), 0, width, epsilon, lanes, found)
            for i in T.serial(width // lanes):
                at = T.meta_var(T.ramp(i * lanes, 1, lanes))
                centred = T.meta_var(x[row * every + (every - 1), at] - wide(found[0], lanes))
                y[row, at] = centred * wide(found[1], lanes) * weight[at]

    return kernel


def add(rows: int, width: int, addend_width: int, lanes: int) -> PrimFunc:
    """Residual sum in place: addend (rows, addend_width), x (rows, width) += addend[:, :width]."""

    @T.prim_func(s_tir=True)
    def kernel(addend: T.Buffer((rows, addend_width), "float32"), x: T.Buffer((rows, width), "float32")):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(rows, width):
            for i in T.serial(width // lanes):
                at = T.meta_var(T.ramp(i * lanes, 1, lanes))
                x[row, at] = x[row, at] + addend[row, at]

    return kernel


def embed(batch: int, hidden: int, observed_width: int, image: bool, epsilon: float, lanes: int) -> PrimFunc:
    """The three tokens of a step, normalized: token order is reward, observation, return-to-go.

    ``observed`` (batch, observed_width) is the encoded observation before its bias; an image's has a ReLU behind it.
    """

    @T.prim_func(s_tir=True)
    def kernel(
        return_to_go: T.Buffer((batch,), "float32"),
        reward: T.Buffer((batch,), "float32"),
        observed: T.Buffer((batch, observed_width), "float32"),
        reward_weight: T.Buffer((hidden,), "float32"),
        reward_bias: T.Buffer((hidden,), "float32"),
        observation_bias: T.Buffer((hidden,), "float32"),
        return_weight: T.Buffer((hidden,), "float32"),
        return_bias: T.Buffer((hidden,), "float32"),
        norm_weight: T.Buffer((hidden,), "float32"),
        norm_bias: T.Buffer((hidden,), "float32"),
        x: T.Buffer((3 * batch, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(batch, 3 * hidden):
            for i in T.serial(hidden // lanes):
                at = T.meta_var(T.ramp(i * lanes, 1, lanes))
                x[3 * row, at] = reward_weight[at] * wide(reward[row], lanes) + reward_bias[at]
                encoded = T.meta_var(observed[row, at] + observation_bias[at])
                if image:
                    x[3 * row + 1, at] = relu(encoded)
                else:
                    x[3 * row + 1, at] = encoded
                x[3 * row + 2, at] = return_weight[at] * wide(return_to_go[row], lanes) + return_bias[at]
            for token in T.serial(3):
                found = T.alloc_buffer((2,), "float32", scope="local")
                moments(x, 3 * row + token, 0, hidden, epsilon, lanes, found)
                for i in T.serial(hidden // lanes):
                    at = T.meta_var(T.ramp(i * lanes, 1, lanes))
                    centred = T.meta_var(x[3 * row + token, at] - wide(found[0], lanes))
                    x[3 * row + token, at] = centred * wide(found[1], lanes) * norm_weight[at] + norm_bias[at]

    return kernel


def head_norm(rows: int, heads: int, width: int, epsilon: float, lanes: int) -> PrimFunc:
    """Group norm with one group per head: x (rows, heads * width), weight (heads * width) -> y.

    Heads may have any width: their vectors are as long as divides it.
    """
    lanes = math.gcd(width, lanes)

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, heads * width), "float32"),
        weight: T.Buffer((heads * width,), "float32"),
        y: T.Buffer((rows, heads * width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(rows, width):
            for head in T.serial(heads):
                found = T.alloc_buffer((2,), "float32", scope="local")
                moments(x, row, head * width, width, epsilon, lanes, found)
                for i in T.serial(width // lanes):
                    at = T.meta_var(span(head * width + i * lanes, lanes))
                    y[row, at] = (x[row, at] - wide(found[0], lanes)) * wide(found[1], lanes) * weight[at]

    return kernel


def gated_output(rows: int, heads: int, width: int, up_width: int, epsilon: float, lanes: int) -> PrimFunc:
    """What the mLSTM hands to its down-projection: (head norm(h) + skip * convolved) * SiLU(gate).

    h and convolved are (rows, heads * width); the gate is the second half of the up-projection, which lies in a
    buffer (rows, up_width).
    """
    inner = heads * width

    @T.prim_func(s_tir=True)
    def kernel(
        h: T.Buffer((rows, inner), "float32"),
        convolved: T.Buffer((rows, inner), "float32"),
        up: T.Buffer((rows, up_width), "float32"),
        weight: T.Buffer((inner,), "float32"),
        skip: T.Buffer((inner,), "float32"),
        y: T.Buffer((rows, inner), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(rows, width):
            for head in T.serial(heads):
                found = T.alloc_buffer((2,), "float32", scope="local")
                moments(h, row, head * width, width, epsilon, lanes, found)
                for i in T.serial(width // lanes):
                    at = T.meta_var(T.ramp(head * width + i * lanes, 1, lanes))
                    gate = T.meta_var(up[row, T.ramp(inner + head * width + i * lanes, 1, lanes)])
                    normed = T.meta_var((h[row, at] - wide(found[0], lanes)) * wide(found[1], lanes) * weight[at])
                    y[row, at] = (normed + skip[at] * convolved[row, at]) * silu(gate)

    return kernel
