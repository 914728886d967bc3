"""The kernels for processors, all that a step calls; a backbone's own lie in a folder of its name.

`kernels/tvm/gpu` has the same names.
"""

from lram_export.kernels.tvm.cpu import decision_transformer, mamba, xlstm
from lram_export.kernels.tvm.cpu.action import choose
from lram_export.kernels.tvm.cpu.convolution import causal_convolution
from lram_export.kernels.tvm.cpu.dense import (
    dense_float,
    dense_int4_dequantized,
    dense_int4_dot,
    dense_int8_dequantized,
    dense_int8_dot,
    dense_int8g_dequantized,
    dense_int8g_dot,
    encode,
)
from lram_export.kernels.tvm.cpu.image import flatten, image_convolution, pool, read_image
from lram_export.kernels.tvm.cpu.interface import look_up, normalize_observation
from lram_export.kernels.tvm.cpu.norms import add, add_bias, layer_norm, rms_norm
from lram_export.kernels.tvm.cpu.tokens import embed_constant, embed_number, embed_vector, narrow, pick

__all__ = [
    "add",
    "add_bias",
    "causal_convolution",
    "choose",
    "decision_transformer",
    "dense_float",
    "dense_int4_dequantized",
    "dense_int4_dot",
    "dense_int8_dequantized",
    "dense_int8_dot",
    "dense_int8g_dequantized",
    "dense_int8g_dot",
    "embed_constant",
    "embed_number",
    "embed_vector",
    "encode",
    "flatten",
    "image_convolution",
    "layer_norm",
    "look_up",
    "mamba",
    "narrow",
    "normalize_observation",
    "pick",
    "pool",
    "read_image",
    "rms_norm",
    "xlstm",
]
