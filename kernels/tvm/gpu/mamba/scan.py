"""The selective state space of a Mamba block for a GPU, see `kernels/tvm/cpu/mamba/scan.py`."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.convolution import kept
from lram_export.kernels.tvm.functions import bind, decay, silu, softplus
from lram_export.kernels.tvm.gpu.threads import WARP, WARPS, blocks, shared, threads


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
    """See `cpu/mamba/scan.py`: a block per row and 32 channels; what a channel remembers is divided among the warps."""
    rows, tiles = tokens * batch, -(-inner // WARP)

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
        for block in blocks(batch * tiles):
            row = T.meta_var(block // tiles)
            sums = T.alloc_buffer((tokens, WARPS, WARP), "float32", scope=shared())
            for thread in threads():
                channel = T.meta_var(block % tiles * WARP + thread % WARP)
                if block % tiles * WARP + thread % WARP < inner:
                    dt = T.alloc_buffer((tokens,), "float32", scope="local")
                    entering = T.alloc_buffer((tokens,), "float32", scope="local")
                    total = T.alloc_buffer((tokens,), "float32", scope="local")
                    memory = T.alloc_buffer((1,), "float32", scope="local")
                    for t in T.unroll(tokens):
                        dt[t] = bind(steps[tokens * row + t, channel] + bias[channel], softplus)
                        if t < skipped:
                            dt[t] = kept(dt[t], is_first[row], 1)
                        entering[t] = dt[t] * u[tokens * row + t, channel]
                        total[t] = T.float32(0)
                    for i in T.serial((size + WARPS - 1) // WARPS):
                        n = T.meta_var(i * WARPS + thread // WARP)
                        if i * WARPS + thread // WARP < size:
                            memory[0] = kept(h[row, n, channel], is_first[row], 1)
                            for t in T.unroll(tokens):
                                B = T.meta_var(selected[tokens * row + t, rank + n])
                                C = T.meta_var(selected[tokens * row + t, rank + size + n])
                                left = T.meta_var(decay(dt[t] * rate[n, channel]))
                                memory[0] = left * memory[0] + entering[t] * B
                                total[t] = total[t] + C * memory[0]
                            h[row, n, channel] = memory[0]
                    for t in T.unroll(tokens):
                        sums[t, thread // WARP, thread % WARP] = total[t]
            for lane in threads():
                channel = T.meta_var(block % tiles * WARP + lane)
                if lane < WARP and block % tiles * WARP + lane < inner:
                    result = T.alloc_buffer((1,), "float32", scope="local")
                    for t in T.unroll(tokens):
                        token = T.meta_var(tokens * row + t)
                        result[0] = D[channel] * u[token, channel]
                        for i in T.serial(WARPS):
                            result[0] = result[0] + sums[t, i, lane]
                        y[token, channel] = result[0] * bind(up[token, inner + channel], silu)

    return kernel
