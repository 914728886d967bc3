"""Mamba blocks for a GPU, see `kernels/tvm/cpu/mamba`."""

from lram_export.kernels.tvm.gpu.mamba.scan import selective_scan

__all__ = ["selective_scan"]
