"""The kernels for a GPU: names, arguments and weights of those for processors, divided among blocks and threads.

A kernel is a grid of blocks, and a block a sequence of loops over its threads; what threads hand on to each other lies
in shared memory, and TVM puts a barrier where a loop needs what another one left. So the same text is a program for one
processor if blocks and threads are plain loops, and that is how the tests check it where no GPU is (``emulate``).

Reads of weights and of C are coalesced: a warp takes the 32 outputs of a tile, or the 32 columns of a tile of C. Inputs
of a product are divided among the warps of a block, which add up in shared memory.
"""

from lram_export.kernels.tvm.gpu import decision_transformer, mamba, xlstm
from lram_export.kernels.tvm.gpu.action import choose
from lram_export.kernels.tvm.gpu.convolution import causal_convolution
from lram_export.kernels.tvm.gpu.dense import (
    dense_float,
    dense_int4_dequantized,
    dense_int8_dequantized,
    dense_int8g_dequantized,
)
from lram_export.kernels.tvm.gpu.image import flatten, image_convolution, pool, read_image
from lram_export.kernels.tvm.gpu.interface import look_up, normalize_observation
from lram_export.kernels.tvm.gpu.norms import add, add_bias, layer_norm, rms_norm
from lram_export.kernels.tvm.gpu.threads import COLUMNS, THREADS, emulate
from lram_export.kernels.tvm.gpu.tokens import embed_constant, embed_number, embed_vector, narrow, pick

__all__ = [
    "COLUMNS",
    "THREADS",
    "add",
    "add_bias",
    "causal_convolution",
    "choose",
    "decision_transformer",
    "dense_float",
    "dense_int4_dequantized",
    "dense_int8_dequantized",
    "dense_int8g_dequantized",
    "embed_constant",
    "embed_number",
    "embed_vector",
    "emulate",
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
