"""A Decision Transformer on the target `tvm`: its weights in the kernels' layout, and the calls of the kernels in
`kernels/tvm`."""

from __future__ import annotations

from typing import Any

from lram_export.backbones.decision_transformer.config import CACHE, DecisionTransformerConfig
from lram_export.exporters.tvm.graph import StepBuilder, Value
from lram_export.exporters.tvm.weights import Packer
from lram_export.spec.tensors import array


def epsilons(stack: Any) -> dict[str, float]:
    """Small number in the norms' denominators: one for all of them."""
    return {"block": stack.post_norm.eps}


def pack(packer: Packer, config: DecisionTransformerConfig, stack: Any) -> None:
    """Bring the weights of all blocks, and of the norm behind them, into the kernels' layout."""
    positions = stack.positions
    packer.add("positions.weight", array(positions.weight))
    if config.context != CACHE:
        packer.add("positions.start", array(positions.start))
        packer.add("positions.no_reward", array(positions.no_reward)[None])
    for number, block in enumerate(stack.blocks):
        name = f"blocks.{number}"
        packer.norm(f"{name}.ln_1", block.ln_1)
        if config.context == CACHE:
            packer.add(f"{name}.key", array(block.key))
            packer.add(f"{name}.value", array(block.value))
        _pack_linear(packer, f"{name}.attn.c_attn", block.attn.c_attn)
        _pack_linear(packer, f"{name}.attn.c_proj", block.attn.c_proj)
        packer.norm(f"{name}.ln_2", block.ln_2)
        _pack_linear(packer, f"{name}.mlp.c_fc", block.mlp.c_fc)
        _pack_linear(packer, f"{name}.mlp.c_proj", block.mlp.c_proj)
    packer.norm("post_norm", stack.post_norm)


def _pack_linear(packer: Packer, name: str, layer: Any) -> None:
    packer.linear(name, layer)
    packer.vectors(name, bias=array(layer.bias))


def emit(step: StepBuilder, config: DecisionTransformerConfig, x: Value) -> Value:
    """From the tokens of the step (rows, hidden) to what the head reads, (batch, hidden).

    Behind the attention of the last block only the token that the head reads goes on.
    """
    cached = config.context == CACHE
    x = _positions(step, config, x)
    x_norm = step.norm("blocks.0.ln_1.weight", x, step.epsilons["block"])
    normed = step.bias("blocks.0.ln_1.bias", x_norm)
    for number in range(config.num_blocks):
        name, last = f"blocks.{number}", number == config.num_blocks - 1
        seen = (_cached_attention if cached else _window_attention)(step, config, number, normed)
        if last and cached:
            x, seen = (step.pick(tokens, step.tokens, step.read) for tokens in (x, seen))
        elif last:
            x = step.pick(x, config.window_tokens, config.window_tokens - 1)
        normed, x = _add_norm(step, f"{name}.attn.c_proj", seen, f"{name}.ln_2", x)
        activated = _activated(step, config, f"{name}.mlp.c_fc", normed)
        following = "post_norm" if last else f"blocks.{number + 1}.ln_1"
        normed, x = _add_norm(step, f"{name}.mlp.c_proj", activated, following, x)
    return normed


def _positions(step: StepBuilder, config: DecisionTransformerConfig, x: Value) -> Value:
    kernels, hidden, weights = step.kernels.decision_transformer, config.hidden_size, step.weights
    if config.context == CACHE:
        sizes: tuple[Any, ...] = (step.batch, step.tokens, hidden, step.lanes)
        return step.call(kernels.add_positions, sizes, [weights["positions.weight"], x], [], in_place=1)[0]
    window = config.window_tokens
    sizes = (step.batch, step.tokens, step.skipped, window, hidden, step.lanes)
    constants = [weights[f"positions.{part}"] for part in ("weight", "start", "no_reward")]
    arguments = [x, step.inputs["is_first"], *constants, step.state(0, "tokens")]
    return step.call(kernels.slide, sizes, arguments, [((step.batch * window, hidden), "float32")], in_place=1)[0]


def _project(step: StepBuilder, name: str, x: Value) -> Value:
    return step.bias(f"{name}.bias", step.dense(name, x, _rows(x)))


def _cached_attention(step: StepBuilder, config: DecisionTransformerConfig, number: int, normed: Value) -> Value:
    name, kernels = f"blocks.{number}", step.kernels.decision_transformer
    projected = _project(step, f"{name}.attn.c_attn", normed)
    sizes = (step.batch, step.tokens, config.num_heads, config.head_size, config.cached_tokens, _columns(projected))
    start = [step.weights[f"{name}.{part}"] for part in ("key", "value")]
    state = [step.state(number, part) for part in ("key", "value", "index")]
    arguments = [projected, *start, step.inputs["is_first"], *state]
    output = [((step.rows, config.hidden_size), "float32")]
    return step.call(kernels.cached_attention, (*sizes, step.lanes), arguments, output, in_place=3)[0]


def _window_attention(step: StepBuilder, config: DecisionTransformerConfig, number: int, normed: Value) -> Value:
    kernels, last = step.kernels.decision_transformer, number == config.num_blocks - 1
    projected = _project(step, f"blocks.{number}.attn.c_attn", normed)
    sizes = (step.batch, config.window_tokens, config.num_heads, config.head_size, _columns(projected))
    rows = step.batch * (1 if last else config.window_tokens)
    output = [((rows, config.hidden_size), "float32")]
    return step.call(kernels.window_attention, (*sizes, last, step.lanes), [projected], output)[0]


def _add_norm(step: StepBuilder, name: str, y: Value, norm: str, x: Value) -> tuple[Value, Value]:
    """x + W y + bias, in place; the norm of it, and it."""
    rows, width = _rows(x), _columns(x)
    product = step.dense(name, y, rows)
    sizes = (rows, width, _columns(product), step.epsilons["block"], step.lanes)
    arguments = [product, *(step.weights[part] for part in (f"{name}.bias", f"{norm}.weight", f"{norm}.bias")), x]
    output = [((rows, width), "float32")]
    normed, x = step.call(step.kernels.decision_transformer.add_norm, sizes, arguments, output, in_place=1)
    return normed, x


def _activated(step: StepBuilder, config: DecisionTransformerConfig, name: str, x: Value) -> Value:
    rows = _rows(x)
    product = step.dense(name, x, rows)
    sizes = (rows, config.ffn_size, _columns(product), "gelu", step.lanes)
    output = [((rows, config.ffn_size), "float32")]
    arguments = [product, step.weights[f"{name}.bias"]]
    return step.call(step.kernels.decision_transformer.activate, sizes, arguments, output)[0]


def _rows(x: Value) -> int:
    return int(x.ty.shape[0].value)


def _columns(x: Value) -> int:
    return int(x.ty.shape[1].value)
