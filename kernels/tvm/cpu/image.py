"""The IMPALA CNN (arXiv 1802.01561).

Feature maps have channels last and a border of zeros: (height + 2, width + 2, C).
"""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.loops import STACK, jobs_loop
from lram_export.kernels.tvm.functions import relu, wide

CHANNELS_AT_ONCE = 16


@T.inline
def clear_border(y, image, row, height, width, channels):
    """Zeros around an image's row; also above the first and below the last."""
    for c in T.serial(channels):
        y[image, row + 1, 0, c] = T.float32(0)
        y[image, row + 1, width + 1, c] = T.float32(0)
    if row == 0:
        for i, c in T.grid(width + 2, channels):
            y[image, 0, i, c] = T.float32(0)
    if row == height - 1:
        for i, c in T.grid(width + 2, channels):
            y[image, height + 1, i, c] = T.float32(0)


def read_image(batch: int, height: int, width: int, channels: int) -> PrimFunc:
    """uint8 (batch, channels, height, width) -> bordered map of numbers from 0 to 1."""

    @T.prim_func(s_tir=True)
    def kernel(
        image: T.Buffer((batch, channels, height, width), "uint8"),
        y: T.Buffer((batch, height + 2, width + 2, channels), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for job in jobs_loop(batch * height, 4 * batch * height * width * channels):
            clear_border(y, job // height, job % height, height, width, channels)
            for i, c in T.grid(width, channels):
                y[job // height, job % height + 1, i + 1, c] = T.Cast(
                    "float32", image[job // height, c, job % height, i]
                ) / T.float32(255)

    return kernel


def _pixels_at_once(width: int) -> int:
    return next(count for count in (4, 2, 1) if width % count == 0)


def image_convolution(
    batch: int, height: int, width: int, inputs: int, outputs: int, lanes: int, *, rectify: bool, residual: bool
) -> PrimFunc:
    """3x3 convolution of a bordered map x, of ReLU(x) if ``rectify``; with ``residual`` another map is added.

    x (batch, height + 2, width + 2, inputs), weight (3, 3, inputs, outputs), bias (outputs), the map to add if there is
    one -> y (batch, height + 2, width + 2, outputs).
    """
    pixels = next(count for count in (4, 2, 1) if width % count == 0)
    vectors = CHANNELS_AT_ONCE // lanes
    groups, columns = outputs // CHANNELS_AT_ONCE, width // pixels
    activation = relu if rectify else (lambda x: x)

    @T.inline
    def convolve_row(x, weight, bias, addend, y, image, row):
        clear_border(y, image, row, height, width, outputs)
        for group, column in T.grid(groups, columns):
            total = T.alloc_buffer((pixels, CHANNELS_AT_ONCE), "float32", scope=STACK)
            for p in T.unroll(pixels):
                for r in T.unroll(vectors):
                    here = T.meta_var(T.ramp(r * lanes, 1, lanes))
                    total[p, here] = bias[T.ramp(group * CHANNELS_AT_ONCE + r * lanes, 1, lanes)]
            for dy, dx, i in T.grid(3, 3, inputs):
                for r in T.unroll(vectors):
                    here = T.meta_var(T.ramp(r * lanes, 1, lanes))
                    w = T.bind(weight[dy, dx, i, T.ramp(group * CHANNELS_AT_ONCE + r * lanes, 1, lanes)])
                    for p in T.unroll(pixels):
                        value = T.meta_var(activation(x[image, row + dy, column * pixels + p + dx, i]))
                        total[p, here] = total[p, here] + w * wide(value, lanes)
            for p in T.unroll(pixels):
                for r in T.unroll(vectors):
                    at = T.meta_var(T.ramp(group * CHANNELS_AT_ONCE + r * lanes, 1, lanes))
                    pixel = T.meta_var(column * pixels + p + 1)
                    result = T.meta_var(total[p, T.ramp(r * lanes, 1, lanes)])
                    if residual:
                        y[image, row + 1, pixel, at] = result + addend[image, row + 1, pixel, at]
                    else:
                        y[image, row + 1, pixel, at] = result

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((batch, height + 2, width + 2, inputs), "float32"),
        weight: T.Buffer((3, 3, inputs, outputs), "float32"),
        bias: T.Buffer((outputs,), "float32"),
        y: T.Buffer((batch, height + 2, width + 2, outputs), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for job in jobs_loop(batch * height, 9 * batch * height * width * inputs * outputs):
            convolve_row(x, weight, bias, x, y, job // height, job % height)

    @T.prim_func(s_tir=True)
    def kernel_with_residual(
        x: T.Buffer((batch, height + 2, width + 2, inputs), "float32"),
        weight: T.Buffer((3, 3, inputs, outputs), "float32"),
        bias: T.Buffer((outputs,), "float32"),
        addend: T.Buffer((batch, height + 2, width + 2, outputs), "float32"),
        y: T.Buffer((batch, height + 2, width + 2, outputs), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for job in jobs_loop(batch * height, 9 * batch * height * width * inputs * outputs):
            convolve_row(x, weight, bias, addend, y, job // height, job % height)

    return kernel_with_residual if residual else kernel


def pool(batch: int, height: int, width: int, channels: int, lanes: int) -> PrimFunc:
    """3x3 maximum with stride 2 and padding 1: bordered map -> bordered map of half the size, rounded up."""
    new_height, new_width = (height + 1) // 2, (width + 1) // 2

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((batch, height + 2, width + 2, channels), "float32"),
        y: T.Buffer((batch, new_height + 2, new_width + 2, channels), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for job in jobs_loop(batch * new_height, 4 * batch * height * width * channels):
            image = T.meta_var(job // new_height)
            row = T.meta_var(job % new_height)
            clear_border(y, image, row, new_height, new_width, channels)
            for column, r in T.grid(new_width, channels // lanes):
                at = T.meta_var(T.ramp(r * lanes, 1, lanes))
                largest = T.alloc_buffer((lanes,), "float32", scope=STACK)
                every = T.meta_var(T.ramp(0, 1, lanes))
                largest[every] = x[image, 2 * row + 1, 2 * column + 1, at]
                for dy, dx in T.grid(3, 3):
                    # the border holds zeros, which are no part of the image
                    inside = T.meta_var(
                        T.And(
                            T.And(2 * row + dy >= 1, 2 * row + dy <= height),
                            T.And(2 * column + dx >= 1, 2 * column + dx <= width),
                        )
                    )
                    if inside:
                        largest[every] = T.max(largest[every], x[image, 2 * row + dy, 2 * column + dx, at])
                y[image, row + 1, column + 1, at] = largest[every]

    return kernel


def flatten(batch: int, height: int, width: int, channels: int) -> PrimFunc:
    """ReLU of a bordered map as one row per image, channels last: (batch, height * width * channels)."""

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((batch, height + 2, width + 2, channels), "float32"),
        y: T.Buffer((batch, height * width * channels), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for image, row, column in T.grid(batch, height, width):
            for c in T.vectorized(channels):
                y[image, (row * width + column) * channels + c] = relu(x[image, row + 1, column + 1, c])

    return kernel
