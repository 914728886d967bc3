"""Mamba on the target `tvm`: its weights in the kernels' layout, and the calls of the kernels in `kernels/tvm`."""

from __future__ import annotations

from typing import Any

import numpy as np

from lram_export.backbones.mamba.config import MambaConfig
from lram_export.exporters.tvm.graph import StepBuilder, Value
from lram_export.exporters.tvm.weights import Packer
from lram_export.spec.tensors import array


def epsilons(stack: Any) -> dict[str, float]:
    """Small number in the norms' denominators: one for all of them."""
    return {"block": stack.post_norm.eps}


def pack(packer: Packer, config: MambaConfig, stack: Any) -> None:
    """Bring the weights of all blocks, and of the norm behind them, into the kernels' layout."""
    for number, block in enumerate(stack.blocks):
        name = f"blocks.{number}"
        packer.norm(f"{name}.norm", block.norm)
        packer.linear(f"{name}.in_proj", block.in_proj)
        packer.convolution(f"{name}.conv", block.conv)
        packer.linear(f"{name}.x_proj", block.x_proj)
        packer.linear(f"{name}.dt_proj", block.dt_proj)
        packer.vectors(f"{name}.dt_proj", bias=array(block.dt_proj.bias))
        packer.add(f"{name}.rate", (array(block.A) / np.log(2.0)).astype(np.float32))
        packer.add(f"{name}.D", array(block.D))
        packer.linear(f"{name}.out_proj", block.out_proj)
        if config.bias:
            packer.vectors(f"{name}.in_proj", bias=array(block.in_proj.bias))
            packer.vectors(f"{name}.out_proj", bias=array(block.out_proj.bias))
    packer.norm("post_norm", stack.post_norm)


def emit(step: StepBuilder, config: MambaConfig, x: Value) -> Value:
    """From the tokens (rows, hidden) to what the head reads, (batch, hidden)."""
    for number in range(config.num_blocks):
        x = _emit_block(step, config, f"blocks.{number}", number, x)
    return _norm(step, config, "post_norm", x, read=True)


def _emit_block(step: StepBuilder, config: MambaConfig, name: str, number: int, x: Value) -> Value:
    batch, tokens, skipped, rows, lanes = step.batch, step.tokens, step.skipped, step.rows, step.lanes
    inner, size, rank, first = config.inner_size, config.state_size, config.dt_rank, step.inputs["is_first"]
    flat = ((rows, inner), "float32")
    up = step.dense(f"{name}.in_proj", _norm(step, config, f"{name}.norm", x), rows)
    if config.bias:
        up = step.bias(f"{name}.in_proj.bias", up)
    widths = tuple(step.matrices[f"{name}.{part}"].width for part in ("in_proj", "x_proj", "dt_proj"))
    conv = [step.weights[f"{name}.conv.{part}"] for part in ("weight", "bias")]
    u, _ = step.call(
        step.kernels.causal_convolution,
        (batch, tokens, skipped, inner, widths[0], config.conv_kernel_size, lanes),
        [up, first, *conv, step.state(number, "conv")],
        [flat],
        in_place=1,
    )
    selected = step.dense(f"{name}.x_proj", u, rows)
    steps = step.dense(f"{name}.dt_proj", step.narrow(selected, rank), rows)
    y, _ = step.call(
        step.kernels.mamba.selective_scan,
        (batch, tokens, skipped, inner, size, rank, *widths, lanes),
        [
            *(u, up, selected, steps),
            *(step.weights[f"{name}.{part}"] for part in ("dt_proj.bias", "rate", "D")),
            *(first, step.state(number, "ssm")),
        ],
        [flat],
        in_place=1,
    )
    x = step.add(f"{name}.out_proj", y, x)
    return step.bias(f"{name}.out_proj.bias", x) if config.bias else x


def _norm(step: StepBuilder, config: MambaConfig, name: str, x: Value, *, read: bool = False) -> Value:
    kernel = step.kernels.rms_norm if config.rms_norm else step.kernels.layer_norm
    normed = step.norm(f"{name}.weight", x, step.epsilons["block"], read=read, kernel=kernel)
    return normed if config.rms_norm else step.bias(f"{name}.bias", normed)
