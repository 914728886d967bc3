"""The `xlstm` package's own block stack, and its state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from xlstm import (
    FeedForwardConfig,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMBlockStackConfig,
)

from lram_export.backbones.protocol import State
from lram_export.model.config import ModelConfig
from lram_export.spec.tensors import state_name


def stack_config(config: ModelConfig, context_length: int) -> xLSTMBlockStackConfig:
    """The package's config of a stack for sequences of up to ``context_length`` tokens in parallel."""

    # The package derives widths from factors; half a unit more, rounded down, gives exactly ours.
    def width(size: int) -> dict[str, float | int | bool]:
        factor = (size + 0.5) / config.hidden_size
        return {"proj_factor": factor, "round_proj_up_dim_up": False, "round_proj_up_to_multiple_of": 1}

    slstm_block = None
    if config.slstm_at:
        slstm_block = sLSTMBlockConfig(
            slstm=sLSTMLayerConfig(
                backend="vanilla",
                num_heads=config.slstm_num_heads,
                conv1d_kernel_size=config.conv_kernel_size,
                dtype="float32",
            ),
            feedforward=FeedForwardConfig(act_fn=config.ffn_activation, **width(config.ffn_size)),
        )
    return xLSTMBlockStackConfig(
        mlstm_block=mLSTMBlockConfig(
            mlstm=mLSTMLayerConfig(
                conv1d_kernel_size=config.conv_kernel_size,
                qkv_proj_blocksize=config.qkv_block_size,
                num_heads=config.num_heads,
                **width(config.inner_size),
            )
        ),
        slstm_block=slstm_block,
        context_length=context_length,
        num_blocks=config.num_blocks,
        embedding_dim=config.hidden_size,
        slstm_at=list(config.slstm_at),
    )


def to_package(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Our named state in the package's nesting; copies what the package changes in place."""
    nested: dict[str, dict[str, Any]] = {}
    for block in range(config.num_blocks):
        part = {p: state[state_name(block, p)] for p in _parts(config, block)}
        # the package keeps one input more than the convolution reads; the oldest is shifted out first
        window = F.pad(part["conv"], (0, 0, 1, 0))
        if block in config.slstm_at:
            cell = torch.stack([part["y"], part["c"], part["n"], part["m"]])
            nested[f"block_{block}"] = {"conv_state": (window,), "slstm_state": cell}
        else:
            matrices = (part["C"], part["n"][..., None], part["m"][..., None, None])
            nested[f"block_{block}"] = {"conv_state": (window,), "mlstm_state": matrices}
    return nested


def from_package(config: ModelConfig, nested: Mapping[str, Mapping[str, Any]]) -> State:
    """The inverse of :func:`to_package`."""
    state: State = {}
    for block in range(config.num_blocks):
        inner = nested[f"block_{block}"]
        (window,) = inner["conv_state"]
        values = [window[:, 1:].clone()]
        if block in config.slstm_at:
            values += list(inner["slstm_state"])
        else:
            C, n, m = inner["mlstm_state"]
            values += [C, n[..., 0], m[..., 0, 0]]
        for part, value in zip(_parts(config, block), values, strict=True):
            state[state_name(block, part)] = value
    return state


def _parts(config: ModelConfig, block: int) -> tuple[str, ...]:
    return ("conv", "y", "c", "n", "m") if block in config.slstm_at else ("conv", "C", "n", "m")
