"""The image encoder for a GPU, see `kernels/tvm/cpu/image.py`: a thread per number of a map."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.functions import relu
from lram_export.kernels.tvm.gpu.threads import THREADS, blocks, threads


def read_image(batch: int, height: int, width: int, channels: int) -> PrimFunc:
    """See `cpu/image.py`: one thread per number of the bordered map."""
    tall, wide_row = height + 2, width + 2
    count = batch * tall * wide_row * channels

    @T.prim_func(s_tir=True)
    def kernel(
        image: T.Buffer((batch, channels, height, width), "uint8"),
        y: T.Buffer((batch, tall, wide_row, channels), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks((count + THREADS - 1) // THREADS):
            for thread in threads():
                at = T.meta_var(block * THREADS + thread)
                c = T.meta_var(at % channels)
                column = T.meta_var(at // channels % wide_row)
                row = T.meta_var(at // channels // wide_row % tall)
                number = T.meta_var(at // channels // wide_row // tall)
                if block * THREADS + thread < count:
                    y[number, row, column, c] = T.float32(0)
                    if row >= 1 and row <= height and column >= 1 and column <= width:
                        y[number, row, column, c] = T.Cast(
                            "float32", image[number, c, row - 1, column - 1]
                        ) / T.float32(255)

    return kernel


def image_convolution(
    batch: int, height: int, width: int, inputs: int, outputs: int, lanes: int, *, rectify: bool, residual: bool
) -> PrimFunc:
    """See `cpu/image.py`: one thread per number of the bordered map."""
    tall, wide_row = height + 2, width + 2
    count = batch * tall * wide_row * outputs
    activation = relu if rectify else (lambda x: x)

    @T.inline
    def number(x, weight, bias, addend, y, image, row, column, o):
        total = T.alloc_buffer((1,), "float32", scope="local")
        total[0] = T.float32(0)
        if row >= 1 and row <= height and column >= 1 and column <= width:
            total[0] = bias[o]
            for dy, dx, i in T.grid(3, 3, inputs):
                value = T.meta_var(activation(x[image, row - 1 + dy, column - 1 + dx, i]))
                total[0] = total[0] + weight[dy, dx, i, o] * value
            if residual:
                total[0] = total[0] + addend[image, row, column, o]
        y[image, row, column, o] = total[0]

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((batch, tall, wide_row, inputs), "float32"),
        weight: T.Buffer((3, 3, inputs, outputs), "float32"),
        bias: T.Buffer((outputs,), "float32"),
        y: T.Buffer((batch, tall, wide_row, outputs), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks((count + THREADS - 1) // THREADS):
            for thread in threads():
                at = T.meta_var(block * THREADS + thread)
                pixel = T.meta_var(at // outputs)
                if block * THREADS + thread < count:
                    number(
                        x, weight, bias, x, y,
                        pixel // wide_row // tall, pixel // wide_row % tall, pixel % wide_row, at % outputs,
                    )  # fmt: skip

    @T.prim_func(s_tir=True)
    def kernel_with_residual(
        x: T.Buffer((batch, tall, wide_row, inputs), "float32"),
        weight: T.Buffer((3, 3, inputs, outputs), "float32"),
        bias: T.Buffer((outputs,), "float32"),
        addend: T.Buffer((batch, tall, wide_row, outputs), "float32"),
        y: T.Buffer((batch, tall, wide_row, outputs), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks((count + THREADS - 1) // THREADS):
            for thread in threads():
                at = T.meta_var(block * THREADS + thread)
                pixel = T.meta_var(at // outputs)
                if block * THREADS + thread < count:
                    number(
                        x, weight, bias, addend, y,
                        pixel // wide_row // tall, pixel // wide_row % tall, pixel % wide_row, at % outputs,
                    )  # fmt: skip

    return kernel_with_residual if residual else kernel


def pool(batch: int, height: int, width: int, channels: int, lanes: int) -> PrimFunc:
    """See `cpu/image.py`: one thread per number of the bordered map."""
    new_height, new_width = (height + 1) // 2, (width + 1) // 2
    tall, wide_row = new_height + 2, new_width + 2
    count = batch * tall * wide_row * channels

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((batch, height + 2, width + 2, channels), "float32"),
        y: T.Buffer((batch, tall, wide_row, channels), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks((count + THREADS - 1) // THREADS):
            for thread in threads():
                at = T.meta_var(block * THREADS + thread)
                c = T.meta_var(at % channels)
                column = T.meta_var(at // channels % wide_row)
                row = T.meta_var(at // channels // wide_row % tall)
                image = T.meta_var(at // channels // wide_row // tall)
                if block * THREADS + thread < count:
                    largest = T.alloc_buffer((1,), "float32", scope="local")
                    largest[0] = T.float32(0)
                    if row >= 1 and row <= new_height and column >= 1 and column <= new_width:
                        # the middle of the window is always inside
                        largest[0] = x[image, 2 * row - 1, 2 * column - 1, c]
                        for dy, dx in T.grid(3, 3):
                            # the border holds zeros, which are no part of the image
                            down = T.meta_var(2 * row - 2 + dy)
                            across = T.meta_var(2 * column - 2 + dx)
                            if down >= 1 and down <= height and across >= 1 and across <= width:
                                largest[0] = T.max(largest[0], x[image, down, across, c])
                    y[image, row, column, c] = largest[0]

    return kernel


def flatten(batch: int, height: int, width: int, channels: int) -> PrimFunc:
    """See `cpu/image.py`: one thread per number."""
    size = height * width * channels

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((batch, height + 2, width + 2, channels), "float32"),
        y: T.Buffer((batch, size), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks((batch * size + THREADS - 1) // THREADS):
            for thread in threads():
                at = T.meta_var(block * THREADS + thread)
                pixel = T.meta_var(at % size // channels)
                if block * THREADS + thread < batch * size:
                    y[at // size, at % size] = relu(x[at // size, pixel // width + 1, pixel % width + 1, at % channels])

    return kernel
