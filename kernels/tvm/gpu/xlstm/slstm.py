"""The sLSTM block for a GPU, see `kernels/tvm/cpu/xlstm/slstm.py`."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.convolution import kept
from lram_export.kernels.tvm.cpu.xlstm.slstm import INITIAL_M
from lram_export.kernels.tvm.functions import ACTIVATIONS, bind, exponential, hyperbolic_tangent, log_sigmoid, sigmoid
from lram_export.kernels.tvm.gpu.norms import moments
from lram_export.kernels.tvm.gpu.threads import FOLD, THREADS, blocks, shared, threads
from lram_export.targets.layout import TILE, whole_tiles


def recurrence(batch: int, tokens: int, skipped: int, heads: int, width: int, lanes: int) -> PrimFunc:
    """See `cpu/xlstm/slstm.py`: a block per row and head; a thread per output of the product, then per channel."""
    rows, hidden = tokens * batch, heads * width
    gates, tiles = whole_tiles(2 * width) * TILE, whole_tiles(4 * width)

    @T.prim_func(s_tir=True)
    def kernel(
        from_conv: T.Buffer((rows, heads * gates), "float32"),
        from_input: T.Buffer((rows, heads * gates), "float32"),
        recurrent: T.Buffer((heads * tiles, width, TILE), "float32"),
        bias: T.Buffer((heads, tiles * TILE), "float32"),
        is_first: T.Buffer((batch,), "float32"),
        y: T.Buffer((batch, hidden), "float32"),
        c: T.Buffer((batch, hidden), "float32"),
        n: T.Buffer((batch, hidden), "float32"),
        m: T.Buffer((batch, hidden), "float32"),
        h: T.Buffer((rows, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(batch * heads):
            row = T.meta_var(block // heads)
            head = T.meta_var(block % heads)
            raw = T.alloc_buffer((4 * width,), "float32", scope=shared())
            held = T.alloc_buffer((width,), "float32", scope=shared())
            for thread in threads():
                for i in T.serial((width + THREADS - 1) // THREADS):
                    channel = T.meta_var(i * THREADS + thread)
                    at = T.meta_var(head * width + i * THREADS + thread)
                    if i * THREADS + thread < width:
                        y[row, at] = kept(y[row, at], is_first[row], 1)
                        held[channel] = y[row, at]
                        c[row, at] = kept(c[row, at], is_first[row], 1)
                        n[row, at] = kept(n[row, at], is_first[row], 1)
                        m[row, at] = kept(m[row, at], is_first[row], 1, INITIAL_M)
            for t in T.serial(tokens):
                for thread in threads():
                    for o in T.serial((4 * width + THREADS - 1) // THREADS):
                        output = T.meta_var(o * THREADS + thread)
                        if o * THREADS + thread < 4 * width:
                            total = T.alloc_buffer((1,), "float32", scope="local")
                            total[0] = bias[head, output]
                            for i in T.serial(width):
                                weight = T.meta_var(recurrent[head * tiles + output // TILE, i, output % TILE])
                                total[0] = total[0] + weight * held[i]
                            raw[output] = total[0]
                for thread in threads():
                    for i in T.serial((width + THREADS - 1) // THREADS):
                        channel = T.meta_var(i * THREADS + thread)
                        at = T.meta_var(head * width + i * THREADS + thread)
                        token = T.meta_var(tokens * row + t)
                        if i * THREADS + thread < width:
                            if t >= skipped or is_first[row] == T.float32(0):
                                first = T.meta_var(head * gates + i * THREADS + thread)
                                entering = T.bind(from_conv[token, first] + raw[channel])
                                forget = T.bind(from_conv[token, first + width] + raw[width + channel])
                                z = T.bind(from_input[token, first] + raw[2 * width + channel])
                                o_gate = T.bind(from_input[token, first + width] + raw[3 * width + channel])
                                decayed = T.bind(log_sigmoid(forget) + m[row, at])
                                top = T.bind(T.max(entering, decayed))
                                entering_gate = T.bind(exponential(entering - top))
                                forget_gate = T.bind(exponential(decayed - top))
                                m[row, at] = top
                                c[row, at] = forget_gate * c[row, at] + entering_gate * hyperbolic_tangent(z)
                                n[row, at] = forget_gate * n[row, at] + entering_gate
                                # read from y: a loop that wrote and read what is shared would need a barrier inside
                                y[row, at] = sigmoid(o_gate) * c[row, at] / n[row, at]
                            held[channel] = y[row, at]
                            h[token, at] = y[row, at]

    return kernel


def head_norm(rows: int, heads: int, width: int, epsilon: float, lanes: int) -> PrimFunc:
    """See `cpu/xlstm/slstm.py`: one block per row and head."""

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, heads * width), "float32"),
        weight: T.Buffer((heads * width,), "float32"),
        y: T.Buffer((rows, heads * width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(rows * heads):
            row = T.meta_var(block // heads)
            start = T.meta_var(block % heads * width)
            parts = T.alloc_buffer((THREADS,), "float32", scope=shared())
            folded = T.alloc_buffer((FOLD,), "float32", scope=shared())
            found = T.alloc_buffer((2,), "float32", scope=shared())
            moments(x, row, start, width, epsilon, parts, folded, found)
            for thread in threads():
                for i in T.serial((width + THREADS - 1) // THREADS):
                    at = T.meta_var(start + i * THREADS + thread)
                    if i * THREADS + thread < width:
                        y[row, at] = (x[row, at] - found[0]) * found[1] * weight[at]

    return kernel


def gated(rows: int, size: int, up_width: int, activation: str, lanes: int) -> PrimFunc:
    """See `cpu/xlstm/slstm.py`: one thread per element."""
    function = ACTIVATIONS[activation]

    @T.prim_func(s_tir=True)
    def kernel(up: T.Buffer((rows, up_width), "float32"), y: T.Buffer((rows, size), "float32")):
        T.func_attr({"tirx.noalias": True})
        for block in blocks((rows * size + THREADS - 1) // THREADS):
            for thread in threads():
                at = T.meta_var(block * THREADS + thread)
                if block * THREADS + thread < rows * size:
                    row = T.meta_var(at // size)
                    y[row, at % size] = bind(up[row, at % size], function) * up[row, size + at % size]

    return kernel
