"""Operators that look at an image, or at a sequence, through a window: convolutions and poolings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lram_export.exporters.native.program.products import dense, gathered_tokens, stored_floats, tokens_of
from lram_export.exporters.native.program.tape import Constant, Tape, Unsupported, Value
from lram_export.targets.native.program import Function, Reduction

MOST_ELEMENTS = 1 << 12


def seen(
    shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Numbers of the elements (channels, *positions, *kernel) that a window sees in (channels, *extents), -1 beyond."""
    numbers = torch.arange(math.prod(shape)).view(*shape)
    for axis in reversed(range(len(kernel))):  # the last axis comes first in what is filled up
        beside = [0, 0] * (len(kernel) - 1 - axis) + [padding[axis], padding[axis]]
        numbers = torch.nn.functional.pad(numbers, beside, value=-1)
    for axis, (size, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True)):
        window = (size - 1) * spread + 1
        numbers = numbers.unfold(axis + 1, window, step)[..., ::spread]
    return numbers


def each(given: Any, axes: int) -> list[int]:
    """A number per axis, of one that is for all, or of as many."""
    numbers = list(given) if isinstance(given, list | tuple) else [given]
    return [int(n) for n in numbers] if len(numbers) == axes else [int(numbers[0])] * axes


def convolution(
    tape: Tape,
    given: Value,
    weight: Value | Constant,
    bias: Value | Constant | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Value:
    """``convolution`` of (1, channels, *extents) as a product of what its window sees with its weights.

    Raises:
        Unsupported: a transposed one.
    """
    if transposed:
        raise Unsupported("transposed convolutions")
    if isinstance(weight, Value) or isinstance(bias, Value):
        raise Unsupported("convolutions whose weights are computed")
    outputs, per_group, *kernel = weight.tensor.shape
    axes = len(kernel)
    shape = given.shape[-axes - 1 :]
    index = seen(shape, kernel, each(stride, axes), each(padding, axes), each(dilation, axes))
    positions = index.shape[1 : axes + 1]
    index = index.reshape(shape[0], math.prod(positions), math.prod(kernel))
    flat = given.reshaped(given.size)
    if groups == 1:
        patches = index.permute(1, 0, 2).reshape(index.shape[1], -1)
        matrix = stored_floats(weight.tensor.reshape(outputs, -1))
        result = dense(tape, gathered_tokens(tape, flat, patches), matrix, None if bias is None else bias.tensor)
        order = torch.arange(result.size).view(result.shape).T
        return tape.gathered(result, order.contiguous()).reshaped(1, outputs, *positions)
    # every output by itself: what it sees, times its weights, summed
    owner = torch.arange(outputs) // (outputs // groups)
    patches = index.reshape(groups, per_group, *index.shape[1:]).permute(0, 2, 1, 3)[owner]
    patches = patches.reshape(outputs, index.shape[1], -1)
    weighted = tape.apply(
        Function.MULTIPLY,
        tape.gathered(flat, patches.contiguous()),
        Constant(weight.tensor.reshape(outputs, 1, -1)),
    )
    found = tape.reduced(Reduction.SUM, weighted, patches.shape[-1]).reshaped(outputs, index.shape[1])
    if bias is not None:
        found = tape.apply(Function.ADD, found, Constant(bias.tensor[:, None]))
    return found.reshaped(1, outputs, *positions)


def largest_pooled(
    tape: Tape,
    given: Value,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Value:
    """The values of ``max_pool2d_with_indices``; raises Unsupported where sizes are rounded up."""
    if ceil_mode:
        raise Unsupported("poolings that round sizes up")
    axes = 2
    lead, shape = given.shape[: -axes - 1], given.shape[-axes - 1 :]
    sizes = each(kernel, axes)
    steps = each(stride, axes) if stride not in ((), [], None) else sizes
    index = seen(shape, sizes, steps, each(padding, axes), each(dilation, axes))
    positions = index.shape[1 : axes + 1]
    patches = tape.gathered(given.reshaped(given.size), index.reshape(-1, math.prod(sizes)), -math.inf)
    found = tape.reduced(Reduction.LARGEST, patches, math.prod(sizes))
    return found.reshaped(*lead, shape[0], *positions)


def mean_pooled(tape: Tape, operator: Any, given: Value, arguments: list[Any], keywords: dict[str, Any]) -> Value:
    """Any operator that takes means of fixed elements, as a product with the matrix of their shares.

    Raises:
        Unsupported: a matrix that would be large.
    """
    extents = given.shape[-2:]
    size = math.prod(extents)
    if size > MOST_ELEMENTS:
        raise Unsupported(f"means of parts of more than {MOST_ELEMENTS} elements")
    shares = operator(torch.eye(size).view(size, 1, *extents), *arguments, **keywords)  # of each element in each mean
    positions = shares.shape[-2:]
    matrix = stored_floats(shares.reshape(size, -1).T)
    planes = math.prod(given.shape[:-2])
    found = dense(tape, tokens_of(tape, given.reshaped(planes, size)), matrix, None)
    return found.reshaped(*given.shape[:-2], *positions)
