"""Weight matrices times some tokens: a weight that is read is multiplied with three of them, or more.

A matrix lies in tiles of 32 outputs (`lram_export/targets/layout.py`), the tiles are divided among the threads. Three
kinds of kernel for a few tokens: floating-point weights, widened in registers; integer codes multiplied by an
instruction for byte dot products, with activations in two planes of codes; and integer codes that are dequantized in
registers, for processors without such an instruction. And one for many tokens.
"""

from lram_export.kernels.tvm.cpu.dense.activations import encode
from lram_export.kernels.tvm.cpu.dense.dequantized import (
    dense_int4_dequantized,
    dense_int8_dequantized,
    dense_int8g_dequantized,
)
from lram_export.kernels.tvm.cpu.dense.dot import dense_int4_dot, dense_int8_dot, dense_int8g_dot
from lram_export.kernels.tvm.cpu.dense.floating import dense_float
from lram_export.kernels.tvm.cpu.dense.many import MANY, dense_many

__all__ = [
    "MANY",
    "dense_float",
    "dense_int4_dequantized",
    "dense_int4_dot",
    "dense_int8_dequantized",
    "dense_int8_dot",
    "dense_int8g_dequantized",
    "dense_int8g_dot",
    "dense_many",
    "encode",
]
