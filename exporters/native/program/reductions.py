"""Operators that make one number of many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lram_export.exporters.native.program.pointwise import is_float
from lram_export.exporters.native.program.tape import Tape, Unsupported, Value
from lram_export.targets.native.program import Function, Reduction

REDUCTIONS = {
    "sum": Reduction.SUM,
    "mean": Reduction.SUM,
    "prod": Reduction.PRODUCT,
    "amax": Reduction.LARGEST,
    "amin": Reduction.SMALLEST,
    "max": Reduction.LARGEST,
    "min": Reduction.SMALLEST,
    "any": Reduction.LARGEST,
    "all": Reduction.SMALLEST,
    "argmax": Reduction.PLACE_OF_LARGEST,
    "argmin": Reduction.PLACE_OF_SMALLEST,
}
PLACES = {"max": Reduction.PLACE_OF_LARGEST, "min": Reduction.PLACE_OF_SMALLEST}


def over(
    tape: Tape, reduction: Reduction, value: Value, axes: Sequence[int], keep: bool, dtype: torch.dtype = torch.float32
) -> Value:
    """A reduction over some axes, none meaning all."""
    rank = len(value.shape)
    chosen = sorted(axis % rank for axis in axes) if rank and axes else list(range(rank))
    kept = [axis for axis in range(rank) if axis not in chosen]
    order = torch.arange(value.size).view(value.shape).permute([*kept, *chosen])
    ordered = tape.gathered(value, order.contiguous())
    length = math.prod(value.shape[axis] for axis in chosen)
    shape = [1 if axis in chosen else value.shape[axis] for axis in range(rank) if keep or axis not in chosen]
    return tape.reduced(reduction, ordered, length, dtype).reshaped(*shape)


def reduction_of(tape: Tape, name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """An operator of :data:`REDUCTIONS`; a pair where it gives values and places.

    Raises:
        Unsupported: sums of whole numbers, which may leave those that float32 holds.
    """
    value, axes, keep = arguments[0], arguments[1] if len(arguments) > 1 else None, False
    if len(arguments) > 2:
        keep = bool(arguments[2])
    axes = keywords.get("dim", axes)
    keep = bool(keywords.get("keepdim", keep))
    pair = name in PLACES and axes is not None
    listed = [] if axes is None else list(axes) if isinstance(axes, list | tuple) else [int(axes)]
    if name in ("any", "all"):
        truth = tape.apply(Function.NOT_EQUAL, value, 0, dtype=torch.bool)
        return over(tape, REDUCTIONS[name], truth, listed, keep, torch.bool)
    if name in ("sum", "mean", "prod") and not is_float(value):
        raise Unsupported(f"'{name}' of whole numbers")
    found = over(tape, REDUCTIONS[name], value, listed, keep, torch.int64 if name.startswith("arg") else value.dtype)
    if name == "mean":
        return tape.apply(Function.MULTIPLY, found, found.size / value.size)
    if pair:
        return [found, over(tape, PLACES[name], value, listed, keep, torch.int64)]
    return found


def variance(tape: Tape, value: Value, axes: Sequence[int], correction: float, keep: bool) -> tuple[Value, Value]:
    """Variance and mean over some axes, both with the axes kept or not."""
    mean = reduction_of(tape, "mean", [value, list(axes), True], {})
    deviation = tape.apply(Function.SUBTRACT, value, mean)
    squares = over(tape, Reduction.SUM, tape.apply(Function.MULTIPLY, deviation, deviation), axes, True)
    count = value.size / squares.size
    found = tape.apply(Function.MULTIPLY, squares, 1 / max(count - correction, 0) if count > correction else math.nan)
    if keep:
        return found, mean
    rank = len(value.shape)
    dropped = {axis % rank for axis in axes} if axes else set(range(rank))
    shape = [extent for axis, extent in enumerate(value.shape) if axis not in dropped]
    return found.reshaped(*shape), mean.reshaped(*shape)
