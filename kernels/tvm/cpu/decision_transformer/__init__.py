"""Blocks of a Decision Transformer for processors (arXiv 2106.01345), all kernels of their own that a step calls."""

from lram_export.kernels.tvm.cpu.decision_transformer.attention import cached_attention, window_attention
from lram_export.kernels.tvm.cpu.decision_transformer.layers import activate, add_norm
from lram_export.kernels.tvm.cpu.decision_transformer.positions import add_positions, slide

__all__ = ["activate", "add_norm", "add_positions", "cached_attention", "slide", "window_attention"]
