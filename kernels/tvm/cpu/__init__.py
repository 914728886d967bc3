"""The kernels for processors, all that a step calls. `kernels/tvm/gpu` has the same names."""

from lram_export.kernels.tvm.cpu.action import choose
from lram_export.kernels.tvm.cpu.dense import (
    dense_float,
    dense_int4_dequantized,
    dense_int4_dot,
    dense_int8_dequantized,
    dense_int8_dot,
    encode,
)
from lram_export.kernels.tvm.cpu.image import flatten, image_convolution, pool, read_image
from lram_export.kernels.tvm.cpu.mlstm import chunk, memory, mix
from lram_export.kernels.tvm.cpu.norms import add, embed, gated_output, head_norm, layer_norm
from lram_export.kernels.tvm.cpu.slstm import gated, recurrence, slstm_convolution

__all__ = [
    "add",
    "choose",
    "chunk",
    "dense_float",
    "dense_int4_dequantized",
    "dense_int4_dot",
    "dense_int8_dequantized",
    "dense_int8_dot",
    "embed",
    "encode",
    "flatten",
    "gated",
    "gated_output",
    "head_norm",
    "image_convolution",
    "layer_norm",
    "memory",
    "mix",
    "pool",
    "read_image",
    "recurrence",
    "slstm_convolution",
]
