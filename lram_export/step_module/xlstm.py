"""A policy around a stack of the `xlstm` package: an encoder, the stack, a head, one token per step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lram_export.backbones.xlstm import step as fused
from lram_export.backbones.xlstm.config import XLSTMConfig
from lram_export.backbones.xlstm.reference import XLSTMReference
from lram_export.errors import UsageError
from lram_export.spec.tokens import PLAIN
from lram_export.step_module.policy import IS_FIRST, Field, Fields, StepPolicy

CHECKED_STEPS, CLOSE = 6, 1e-4
"""Steps in which the stack's own step and ours are compared, and how far they may be apart: both are float32."""


def xlstm_policy(
    stack: Any,
    *,
    observation: Fields,
    action: Fields,
    encoder: nn.Module | None = None,
    head: nn.Module | None = None,
) -> StepPolicy:
    """A policy of one token per step.

    Args:
        stack: an ``xLSTMBlockStack``, an ``xLSTMLargeBlockStack`` or an ``xLSTMLarge``, whose backbone is meant.
        observation: as for :class:`~lram_export.step_module.policy.StepPolicy`.
        action: likewise.
        encoder: called with the observations in their order, gives (rows, embedding_dim); None: the observation is the
            token.
        head: called with (rows, embedding_dim), gives the outputs; None: they are what the stack leaves.

    Raises:
        UsageError: another kind of stack, or one with an option that is not supported, by name.
    """
    kind = type(stack).__name__
    if kind == "xLSTMLarge":
        stack, kind = stack.backbone, "xLSTMLargeBlockStack"
    makers: dict[str, Callable[[Any], _Step]] = {
        "xLSTMBlockStack": _BlockStackStep,
        "xLSTMLargeBlockStack": _LargeStackStep,
    }
    if kind not in makers:
        raise UsageError(f"xlstm_policy: stack: expected one of {', '.join(makers)}, got {kind}")
    stack.eval()
    step = makers[kind](stack)
    inputs = StepPolicy(step, observation=observation, action=action).observation
    if step.takes_is_first:
        inputs = {**inputs, IS_FIRST: Field(())}
    whole = _Policy(len(inputs), encoder or nn.Identity(), step, head or nn.Identity())
    return StepPolicy(whole, observation=inputs, action=action, state=step.states)


class _Step(nn.Module):
    """A stack as a pure function: (tokens (rows, width), is_first or nothing, *state) -> (tokens, *next state)."""

    takes_is_first: bool
    states: dict[str, Field]


class _Policy(nn.Module):
    def __init__(self, inputs: int, encoder: nn.Module, step: _Step, head: nn.Module) -> None:
        super().__init__()
        self.inputs, self.encoder, self.step, self.head = inputs, encoder, step, head

    def forward(self, *arguments: Tensor) -> tuple[Any, ...]:
        """Observations, is_first where the stack wants it, states."""
        observations, rest = arguments[: self.inputs], arguments[self.inputs :]
        if self.step.takes_is_first:
            observations, rest = observations[:-1], (observations[-1], *rest)
        x, *after = self.step(self.encoder(*observations), *rest)
        return (self.head(x), *after)


class _BlockStackStep(_Step):
    """``xLSTMBlockStack``, by the step graph that this project has of it."""

    takes_is_first = True

    def __init__(self, stack: Any) -> None:
        super().__init__()
        sizes = _sizes(stack)
        self.stack = fused.build(XLSTMReference(sizes, stack), PLAIN, torch.zeros(1, sizes.hidden_size))
        names = {f"block{spec.name.removeprefix('state.').replace('.', '_')}": spec for spec in sizes.states(1, 1)}
        self.states = {name: Field(spec.shape[1:], initial=spec.initial) for name, spec in names.items()}
        self.requires_grad_(False)
        _compare(stack, self, sizes.hidden_size)

    def forward(self, x: Tensor, is_first: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """See :class:`_Step`."""
        left, *after = self.stack(x[:, None], is_first > 0, torch.ones_like(is_first)[:, None], *state)
        return (left, *after)


def _sizes(stack: Any) -> XLSTMConfig:
    """Sizes of a user's stack; raises UsageError for an option that the step graph does not know."""
    config, blocks = stack.config, list(stack.blocks)
    slstm_at = tuple(i for i, kind in enumerate(config.block_map) if kind == 1)
    matrix = [block.xlstm for i, block in enumerate(blocks) if i not in slstm_at]
    scalar = [blocks[i] for i in slstm_at]
    if not matrix:
        raise UsageError("xlstm_policy: stack: expected an mLSTM block among its blocks")
    if not config.add_post_blocks_norm:
        raise UsageError("xlstm_policy: stack: add_post_blocks_norm: expected True")
    first = matrix[0].config
    kernels = {layer.config.conv1d_kernel_size for layer in (*matrix, *(block.xlstm for block in scalar))}
    if len(kernels) != 1 or min(kernels) < 2:
        raise UsageError(f"xlstm_policy: stack: conv1d_kernel_size: expected one of 2 or more, got {sorted(kernels)}")
    for block in scalar:
        if block.xlstm.config.backend != "vanilla":
            raise UsageError("xlstm_policy: stack: slstm: backend: expected 'vanilla', which runs on every processor")
        if block.ffn is None:
            raise UsageError("xlstm_policy: stack: slstm_block: feedforward: expected one")
    ffn = scalar[0].ffn.config if scalar else None
    try:
        return XLSTMConfig(
            hidden_size=config.embedding_dim,
            num_blocks=len(blocks),
            num_heads=first.num_heads,
            inner_size=first._inner_embedding_dim,
            slstm_at=slstm_at,
            slstm_num_heads=scalar[0].xlstm.config.num_heads if scalar else 4,
            ffn_size=ffn._proj_up_dim if ffn is not None else 0,
            ffn_activation=ffn.act_fn if ffn is not None else "gelu",
            conv_kernel_size=kernels.pop(),
            qkv_block_size=first.qkv_proj_blocksize,
        )
    except ValueError as error:
        raise UsageError(f"xlstm_policy: stack: {error}") from None


class _LargeStackStep(_Step):
    """``xLSTMLargeBlockStack``, block by block: its own loop writes the state in place."""

    takes_is_first = False

    def __init__(self, stack: Any) -> None:
        super().__init__()
        config = stack.config
        for name, expected in (("mode", "inference"), ("step_kernel", "native")):
            if getattr(config, name) != expected:
                raise UsageError(
                    f"xlstm_policy: stack: {name}: expected '{expected}', which makes one step on every processor, got "
                    f"'{getattr(config, name)}'"
                )
        self.blocks, self.out_norm = stack.blocks, stack.out_norm
        heads = config.num_heads
        query, value = (
            int(config.embedding_dim * factor) // heads for factor in (config.qk_dim_factor, config.v_dim_factor)
        )
        shapes = {"C": (heads, query, value), "n": (heads, query), "m": (heads, 1)}
        self.states = {f"block{i}_{part}": Field(s) for i in range(len(stack.blocks)) for part, s in shapes.items()}
        self.requires_grad_(False)

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """See :class:`_Step`."""
        x, after = x[:, None], []
        for i, block in enumerate(self.blocks):
            x, new = block(x, tuple(state[3 * i : 3 * i + 3]))
            after += new
        return (self.out_norm(x)[:, 0], *after)


def _compare(stack: Any, step: _BlockStackStep, width: int) -> None:
    """Raise UsageError unless a few random steps are those of the package: an option that is not known here changes
    them."""
    generator = torch.Generator().manual_seed(0)
    nested: Any = None
    state = [torch.full((1, *field.shape), float(field.initial)) for field in step.states.values()]
    for number in range(CHECKED_STEPS):
        x = torch.randn(1, width, generator=generator)
        with torch.no_grad():
            expected, nested = stack.step(x[:, None], nested)
            found, *state = step(x, torch.tensor([float(number == 0)]), *state)
        error = float((found - expected[:, 0]).abs().max())
        if not error <= CLOSE * max(1.0, float(expected.abs().max())):
            raise UsageError(
                f"xlstm_policy: stack: its own step and ours are {error:.2g} apart: it has an option that is not known "
                f"here, such as a bias of q, k and v; write it as a StepPolicy"
            )
