"""xLSTM on the target `tvm`: its weights in the kernels' layout, and the calls of the kernels in `kernels/tvm`."""

from __future__ import annotations

from typing import Any

from lram_export.backbones.xlstm.config import XLSTMConfig
from lram_export.backbones.xlstm.fused import channel_parts, folded_gates, fused_block_size, query_key_value
from lram_export.backbones.xlstm.step import MLSTMBlock, SLSTMBlock
from lram_export.exporters.tvm.graph import StepBuilder, Value
from lram_export.exporters.tvm.weights import Packer
from lram_export.kernels.tvm.cpu.xlstm.mlstm import coefficient_count, mix_lanes
from lram_export.spec.tensors import array
from lram_export.targets.layout import TILE, pad_columns


def epsilons(stack: Any) -> dict[str, float]:
    """Small numbers in the norms' denominators, which only the step graph knows."""
    blocks = list(stack.blocks)
    mlstm = next((b for b in blocks if isinstance(b, MLSTMBlock)), None)
    slstm = next((b for b in blocks if isinstance(b, SLSTMBlock)), None)
    return {
        "block": stack.post_norm.eps,
        "mlstm_heads": mlstm.out_norm.eps if mlstm else 0.0,
        "slstm_heads": slstm.out_norm.eps if slstm else 0.0,
    }


def pack(packer: Packer, config: XLSTMConfig, stack: Any) -> None:
    """Bring the weights of all blocks, and of the norm behind them, into the kernels' layout."""
    for number, block in enumerate(stack.blocks):
        name = f"blocks.{number}"
        _pack_slstm(packer, name, block) if isinstance(block, SLSTMBlock) else _pack_mlstm(packer, config, name, block)
    packer.vectors("post_norm", weight=array(stack.post_norm.weight))


def _pack_mlstm(packer: Packer, config: XLSTMConfig, name: str, block: Any) -> None:
    size = fused_block_size(config.qkv_block_size, config.inner_size)
    packer.vectors(f"{name}.norm", weight=array(block.norm.weight))
    packer.linear(f"{name}.proj_up", block.proj_up)
    packer.convolution(f"{name}.conv", block.conv)
    packer.add(f"{name}.query_key_value", query_key_value(block, size))
    packer.add(f"{name}.gates.weight", folded_gates(block, channel_parts(config.inner_size, size), size))
    packer.vectors(f"{name}.gates", bias=array(block.gates.bias))
    packer.vectors(f"{name}.out_norm", weight=array(block.out_norm.weight))
    packer.add(f"{name}.skip", array(block.skip))
    packer.linear(f"{name}.proj_down", block.proj_down)


def _pack_slstm(packer: Packer, name: str, block: Any) -> None:
    packer.vectors(f"{name}.norm", weight=array(block.norm.weight))
    packer.convolution(f"{name}.conv", block.conv)
    for part in ("from_conv", "from_input", "recurrent"):
        # (heads, in, out) -> per head (out, in)
        packer.floats(f"{name}.{part}", list(array(getattr(block, part)).transpose(0, 2, 1)))
    packer.add(f"{name}.bias", pad_columns(array(block.bias), TILE))
    packer.vectors(f"{name}.out_norm", weight=array(block.out_norm.weight))
    packer.vectors(f"{name}.ffn_norm", weight=array(block.ffn_norm.weight))
    packer.linear(f"{name}.ffn_up", block.ffn_up)
    packer.linear(f"{name}.ffn_down", block.ffn_down)


def emit(step: StepBuilder, config: XLSTMConfig, x: Value) -> Value:
    """From the tokens (rows, hidden) to what the head reads, (batch, hidden)."""
    for number in range(config.num_blocks):
        x = (_emit_slstm if number in config.slstm_at else _emit_mlstm)(step, config, number, x)
    return step.norm("post_norm.weight", x, step.epsilons["block"], read=True)


def _emit_mlstm(step: StepBuilder, config: XLSTMConfig, number: int, x: Value) -> Value:
    kernels, name, epsilons = step.kernels.xlstm, f"blocks.{number}", step.epsilons
    batch, tokens, skipped, rows, lanes = step.batch, step.tokens, step.skipped, step.rows, step.lanes
    heads, width, inner = config.num_heads, config.head_dim, config.inner_size
    size = fused_block_size(config.qkv_block_size, inner)
    parts, gates = channel_parts(inner, size), 2 * heads
    sum_lanes = mix_lanes(inner // parts, size, lanes)
    first = step.inputs["is_first"]
    up = step.dense(f"{name}.proj_up", step.norm(f"{name}.norm.weight", x, epsilons["block"]), rows)
    up_width = step.matrices[f"{name}.proj_up"].width

    flat = ((rows, inner), "float32")
    of_parts = ("conv.weight", "conv.bias", "query_key_value", "gates.weight")
    convolved, q, k, v, gate_sums, _ = step.call(
        kernels.mix,
        (batch, tokens, skipped, inner, up_width, config.conv_kernel_size, parts, heads, size, lanes),
        [up, first, *(step.weights[f"{name}.{part}"] for part in of_parts), step.state(number, "conv")],
        [flat, flat, flat, flat, ((parts, batch, gates, tokens, sum_lanes), "float32")],
        in_place=1,
    )
    weighted_keys, coefficients, *_ = step.call(
        kernels.chunk,
        (batch, tokens, skipped, heads, width, parts, sum_lanes, lanes),
        [q, k, gate_sums, step.weights[f"{name}.gates.bias"], first, step.state(number, "n"), step.state(number, "m")],
        [flat, ((batch, heads, coefficient_count(tokens)), "float32")],
        in_place=2,
    )
    memory = step.state(number, "C")
    columns = memory.ty.shape[-1].value
    h, _ = step.call(
        kernels.memory,
        (batch, tokens, heads, width, columns, lanes),
        [q, weighted_keys, v, coefficients, first, memory],
        [flat],
        in_place=1,
    )
    gated = step.call(
        kernels.gated_output,
        (rows, heads, width, up_width, epsilons["mlstm_heads"], lanes),
        [h, convolved, up, step.weights[f"{name}.out_norm.weight"], step.weights[f"{name}.skip"]],
        [flat],
    )[0]
    return step.add(f"{name}.proj_down", gated, x)


def _emit_slstm(step: StepBuilder, config: XLSTMConfig, number: int, x: Value) -> Value:
    kernels, name, epsilons = step.kernels.xlstm, f"blocks.{number}", step.epsilons
    batch, tokens, skipped, rows, lanes = step.batch, step.tokens, step.skipped, step.rows, step.lanes
    hidden, heads, first = config.hidden_size, config.slstm_num_heads, step.inputs["is_first"]
    flat = ((rows, hidden), "float32")
    normed = step.norm(f"{name}.norm.weight", x, epsilons["block"])
    conv = [step.weights[f"{name}.conv.weight"], step.weights[f"{name}.conv.bias"], step.state(number, "conv")]
    convolved, _ = step.call(
        step.kernels.causal_convolution,
        (batch, tokens, skipped, hidden, hidden, config.conv_kernel_size, lanes),
        [normed, first, *conv],
        [flat],
        in_place=1,
    )
    from_conv = step.dense(f"{name}.from_conv", convolved, rows)
    from_input = step.dense(f"{name}.from_input", normed, rows)
    cell = [step.weights[f"{name}.recurrent.weight"], step.weights[f"{name}.bias"], first]
    h, *_ = step.call(
        kernels.recurrence,
        (batch, tokens, skipped, heads, hidden // heads, lanes),
        [from_conv, from_input, *cell, *(step.state(number, part) for part in ("y", "c", "n", "m"))],
        [flat],
        in_place=4,
    )
    sizes: tuple[Any, ...] = (rows, heads, hidden // heads, epsilons["slstm_heads"], lanes)
    h = step.call(kernels.head_norm, sizes, [h, step.weights[f"{name}.out_norm.weight"]], [flat])[0]
    x = step.residual(h, hidden, x)

    normed = step.norm(f"{name}.ffn_norm.weight", x, epsilons["block"])
    up = step.dense(f"{name}.ffn_up", normed, rows)
    sizes = (rows, config.ffn_size, step.matrices[f"{name}.ffn_up"].width, config.ffn_activation, lanes)
    gated = step.call(kernels.gated, sizes, [up], [((rows, config.ffn_size), "float32")])[0]
    return step.add(f"{name}.ffn_down", gated, x)
