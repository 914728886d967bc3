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
    xLSTMBlockStack,
    xLSTMBlockStackConfig,
)

from lram_export.backbones.protocol import State
from lram_export.backbones.token_by_token import TokenByToken
from lram_export.backbones.xlstm.config import XLSTMConfig
from lram_export.spec.tensors import state_name


class XLSTMReference(TokenByToken):
    """The package's own stack; each token goes through its ``step``."""

    def __init__(self, config: XLSTMConfig, layers: xLSTMBlockStack) -> None:
        super().__init__()
        self.layers, self.sizes = layers, config

    def forward(self, x: Tensor) -> Tensor:
        """Whole sequences at once, as in training: (B, tokens, hidden) -> the same."""
        left: Tensor = self.layers(x)
        return left

    def nest(self, state: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
        """See :class:`~lram_export.backbones.protocol.ReferenceBackbone`."""
        return to_package(self.sizes, state)

    def token(self, x: Tensor, nested: dict[str, dict[str, Any]]) -> tuple[Tensor, dict[str, dict[str, Any]]]:
        """See :class:`~lram_export.backbones.token_by_token.TokenByToken`."""
        left, after = self.layers.step(x, nested)
        return left, after

    def flatten(self, nested: Mapping[str, Mapping[str, Any]]) -> State:
        """See :class:`~lram_export.backbones.protocol.ReferenceBackbone`."""
        return from_package(self.sizes, nested)


def build(config: XLSTMConfig, context_length: int = 1) -> XLSTMReference:
    """The stack with room for sequences of ``context_length`` tokens in its parallel form, which training uses."""
    return XLSTMReference(config, xLSTMBlockStack(stack_config(config, context_length)))


def stack_config(config: XLSTMConfig, context_length: int) -> xLSTMBlockStackConfig:
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


def to_package(config: XLSTMConfig, state: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
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


def from_package(config: XLSTMConfig, nested: Mapping[str, Mapping[str, Any]]) -> State:
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


def _parts(config: XLSTMConfig, block: int) -> tuple[str, ...]:
    return ("conv", "y", "c", "n", "m") if block in config.slstm_at else ("conv", "C", "n", "m")
