"""The selective state space of a Mamba block. Formula: `lram_export/backbones/mamba/step.py`."""

import math

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.convolution import kept
from lram_export.kernels.tvm.cpu.loops import STACK, jobs_loop
from lram_export.kernels.tvm.functions import bind, decay, silu, softplus, span, wide


def selective_scan(
    batch: int,
    tokens: int,
    skipped: int,
    inner: int,
    size: int,
    rank: int,
    up_width: int,
    selected_width: int,
    steps_width: int,
    lanes: int,
) -> PrimFunc:
    """The tokens of a step through the state space, and the gate: a vector of channels at a time, whose memory goes
    through all tokens in a register.

    u (tokens * batch, inner) is the convolved input; the gate lies behind the first ``inner`` columns of up
    (tokens * batch, up_width); B and C, ``size`` numbers each, behind the first ``rank`` of selected (tokens * batch,
    selected_width); steps (tokens * batch, steps_width) are step sizes before bias and softplus. rate (size, inner) is
    A / log(2): in a step of size dt the memory decays by 2^(dt * rate). h (batch, size, inner) moves on in place; the
    first ``skipped`` tokens leave it as it is where an episode starts.
    """
    rows, lanes = tokens * batch, math.gcd(inner, lanes)
    vectors = inner // lanes
    read = 4 * batch * inner * (3 * size + 4 * tokens)

    @T.prim_func(s_tir=True)
    def kernel(
        u: T.Buffer((rows, inner), "float32"),
        up: T.Buffer((rows, up_width), "float32"),
        selected: T.Buffer((rows, selected_width), "float32"),
        steps: T.Buffer((rows, steps_width), "float32"),
        bias: T.Buffer((inner,), "float32"),
        rate: T.Buffer((size, inner), "float32"),
        D: T.Buffer((inner,), "float32"),
        is_first: T.Buffer((batch,), "float32"),
        h: T.Buffer((batch, size, inner), "float32"),
        y: T.Buffer((rows, inner), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for job in jobs_loop(batch * vectors, read):
            row = T.meta_var(job // vectors)
            at = T.meta_var(span(job % vectors * lanes, lanes))
            gate = T.meta_var(span(inner + job % vectors * lanes, lanes))
            every = T.meta_var(span(0, lanes))
            dt = T.alloc_buffer((tokens, lanes), "float32", scope=STACK)
            entering = T.alloc_buffer((tokens, lanes), "float32", scope=STACK)
            total = T.alloc_buffer((tokens, lanes), "float32", scope=STACK)
            memory = T.alloc_buffer((lanes,), "float32", scope=STACK)
            for t in T.unroll(tokens):
                token = T.meta_var(tokens * row + t)
                dt[t, every] = bind(steps[token, at] + bias[at], softplus)
                if t < skipped:
                    dt[t, every] = kept(dt[t, every], is_first[row], lanes)
                entering[t, every] = dt[t, every] * u[token, at]
                total[t, every] = D[at] * u[token, at]
            for n in T.serial(size):
                memory[every] = kept(h[row, n, at], is_first[row], lanes)
                for t in T.unroll(tokens):
                    token = T.meta_var(tokens * row + t)
                    left = T.meta_var(decay(dt[t, every] * rate[n, at]))
                    B = T.meta_var(wide(selected[token, rank + n], lanes))
                    C = T.meta_var(wide(selected[token, rank + size + n], lanes))
                    memory[every] = left * memory[every] + entering[t, every] * B
                    total[t, every] = total[t, every] + C * memory[every]
                h[row, n, at] = memory[every]
            for t in T.unroll(tokens):
                token = T.meta_var(tokens * row + t)
                y[token, at] = total[t, every] * bind(up[token, gate], silu)

    return kernel
