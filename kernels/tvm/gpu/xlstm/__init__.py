"""xLSTM blocks for a GPU, see `kernels/tvm/cpu/xlstm`."""

from lram_export.kernels.tvm.gpu.xlstm.mlstm import chunk, gated_output, memory, mix
from lram_export.kernels.tvm.gpu.xlstm.slstm import gated, head_norm, recurrence

__all__ = ["chunk", "gated", "gated_output", "head_norm", "memory", "mix", "recurrence"]
