"""Mamba blocks for processors (arXiv 2312.00752), all kernels of their own that a step calls."""

from lram_export.kernels.tvm.cpu.mamba.scan import selective_scan

__all__ = ["selective_scan"]
