"""Sizes, shapes and states of xLSTM blocks. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lram_export.spec.tensors import TensorSpec, state_name

if TYPE_CHECKING:
    from lram_export.model.config import ModelConfig


def round_up(value: float, multiple: int = 64) -> int:
    """Widths as the xlstm package rounds them (`UpProjConfigMixin`): up to a multiple of 64."""
    return int(-(-value // multiple) * multiple)


def mlstm_shapes(config: ModelConfig, block: int) -> dict[str, tuple[int, ...]]:
    """Weights of an mLSTM block, in the original code's names."""
    prefix = f"encoder.layers.blocks.{block}"
    hidden, inner, size = config.hidden_size, config.inner_size, config.qkv_block_size
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}.xlstm_norm.weight": (hidden,),
        f"{prefix}.xlstm.learnable_skip": (inner,),
        f"{prefix}.xlstm.proj_up.weight": (2 * inner, hidden),
        f"{prefix}.xlstm.proj_down.weight": (hidden, inner),
        f"{prefix}.xlstm.conv1d.conv.weight": (inner, 1, config.conv_kernel_size),
        f"{prefix}.xlstm.conv1d.conv.bias": (inner,),
        f"{prefix}.xlstm.mlstm_cell.outnorm.weight": (inner,),
    }
    for projection in ("q_proj", "k_proj", "v_proj"):
        shapes[f"{prefix}.xlstm.{projection}.weight"] = (inner // size, size, size)
    for gate in ("igate", "fgate"):
        shapes[f"{prefix}.xlstm.mlstm_cell.{gate}.weight"] = (config.num_heads, 3 * inner)
        shapes[f"{prefix}.xlstm.mlstm_cell.{gate}.bias"] = (config.num_heads,)
    return shapes


def slstm_shapes(config: ModelConfig, block: int) -> dict[str, tuple[int, ...]]:
    """Weights of an sLSTM block with its feed-forward, in the original code's names."""
    prefix = f"encoder.layers.blocks.{block}"
    hidden, heads = config.hidden_size, config.slstm_num_heads
    width = hidden // heads
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}.xlstm_norm.weight": (hidden,),
        f"{prefix}.xlstm.conv1d.conv.weight": (hidden, 1, config.conv_kernel_size),
        f"{prefix}.xlstm.conv1d.conv.bias": (hidden,),
        f"{prefix}.xlstm.slstm_cell._recurrent_kernel_": (heads, 4 * width, width),
        f"{prefix}.xlstm.slstm_cell._bias_": (4 * hidden,),
        f"{prefix}.xlstm.group_norm.weight": (hidden,),
        f"{prefix}.ffn_norm.weight": (hidden,),
        f"{prefix}.ffn.proj_up.weight": (2 * config.ffn_size, hidden),
        f"{prefix}.ffn.proj_down.weight": (hidden, config.ffn_size),
    }
    for gate in ("igate", "fgate", "zgate", "ogate"):
        shapes[f"{prefix}.xlstm.{gate}.weight"] = (heads, width, width)
    return shapes


SLSTM_INITIAL_M = -1e30
"""Initial stabilizer of an sLSTM block: makes the first step take m = i, as the original's branch does."""


def state_specs(config: ModelConfig, batch_size: int) -> list[TensorSpec]:
    """Recurrent state of every block: ``conv`` holds the last inputs of the causal convolution, oldest first."""
    specs: list[TensorSpec] = []
    window = config.conv_kernel_size - 1
    for block in range(config.num_blocks):
        if block in config.slstm_at:
            hidden = (batch_size, config.hidden_size)
            parts: Mapping[str, tuple[tuple[int, ...], float]] = {
                "conv": ((batch_size, window, config.hidden_size), 0.0),
                "y": (hidden, 0.0),
                "c": (hidden, 0.0),
                "n": (hidden, 0.0),
                "m": (hidden, SLSTM_INITIAL_M),
            }
        else:
            heads, width = config.num_heads, config.head_dim
            parts = {
                "conv": ((batch_size, window, config.inner_size), 0.0),
                "C": ((batch_size, heads, width, width), 0.0),
                "n": ((batch_size, heads, width), 0.0),
                "m": ((batch_size, heads), 0.0),
            }
        specs += [
            TensorSpec(state_name(block, part), shape, "float32", initial) for part, (shape, initial) in parts.items()
        ]
    return specs
