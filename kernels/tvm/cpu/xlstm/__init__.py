"""xLSTM blocks for processors (arXiv 2405.04517), all kernels that a step calls of them."""

from lram_export.kernels.tvm.cpu.xlstm.mlstm import chunk, gated_output, memory, mix
from lram_export.kernels.tvm.cpu.xlstm.slstm import gated, head_norm, recurrence

__all__ = ["chunk", "gated", "gated_output", "head_norm", "memory", "mix", "recurrence"]
