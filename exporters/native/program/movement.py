"""Operators that move elements and change none: each is asked, by a tensor of numbers, where its elements come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lram_export.exporters.native.program.tape import Constant, Tape, Unsupported, Value
from lram_export.targets.native.program import Place

Given = Value | Constant
MOST_PIECES = 16
"""Where a result is made of more pieces than this, its sources are put together first."""

MOVES = frozenset(
    (
        *("view", "_unsafe_view", "reshape", "contiguous", "squeeze", "unsqueeze", "permute", "transpose", "t"),
        *("expand", "repeat", "slice", "select", "split", "split_with_sizes", "unbind", "chunk", "cat", "stack"),
        *("flip", "roll", "unfold", "diagonal", "tril", "triu", "constant_pad_nd"),
        *("clone", "alias", "detach", "lift_fresh_copy", "copy", "slice_scatter", "select_scatter"),
        *("index_select", "index", "gather", "index_put", "scatter"),
        *("view_copy", "squeeze_copy", "unsqueeze_copy", "permute_copy", "transpose_copy", "t_copy", "expand_copy"),
        *("select_copy", "slice_copy", "alias_copy", "split_copy", "split_with_sizes_copy", "unbind_copy"),
        *("unfold_copy", "diagonal_copy"),
    )
)
"""Names of the operators, of any overload."""
INDEXED = frozenset(("index_select", "index", "gather", "index_put", "scatter"))
"""Those with an index among their arguments, which must be a constant."""


def moved(
    tape: Tape, name: str, operator: Callable[..., Any], arguments: Any, keywords: Any, dtype: torch.dtype
) -> Any:
    """The result of an operator of :data:`MOVES`, of a type, or the list of its results, of that of its argument.

    Raises:
        Unsupported: an index that is computed; what does more than to move.
    """
    _check_moves_only(name, arguments, keywords)
    fill = 0.0
    if name == "constant_pad_nd":
        fill, arguments = float(arguments[2] if len(arguments) > 2 else 0.0), [*arguments[:2], 0]
    sources: list[Given] = []
    starts: list[int] = []
    numbered, count = {}, 1  # 0 is what the operator fills up with

    def number(given: Any) -> Any:
        nonlocal count
        if isinstance(given, list | tuple):
            return [number(part) for part in given]
        if name in INDEXED and _is_index(given):
            return _known(given)
        if not isinstance(given, Value | Constant):
            return given
        if id(given) not in numbered:
            shape = given.shape if isinstance(given, Value) else tuple(given.tensor.shape)
            size = int(torch.Size(shape).numel())
            numbered[id(given)] = torch.arange(count, count + size).view(shape)
            sources.append(given)
            starts.append(count)
            count += size
        return numbered[id(given)]

    found = operator(*[number(a) for a in arguments], **{k: number(a) for k, a in keywords.items()})
    values = [tape.value(source) for source in sources]
    if isinstance(found, list | tuple):
        return [rearranged(tape, part, values, starts, fill) for part in found]
    if dtype != torch.float32 and any(value.dtype == torch.float32 for value in values):
        raise Unsupported(f"'{name}' to another type")
    return dataclasses.replace(rearranged(tape, found, values, starts, fill), dtype=dtype)


def _check_moves_only(name: str, arguments: list[Any], keywords: dict[str, Any]) -> None:
    """What puts a number in, adds up, or reads bits as another type would be taken for places of elements."""
    computes = name == "index_put" and ((len(arguments) > 3 and arguments[3]) or keywords.get("accumulate"))
    writes = name == "scatter" and (len(arguments) != 4 or bool(keywords) or not isinstance(arguments[3], Given))
    if computes or writes or any(isinstance(a, torch.dtype) for a in arguments[1:]):
        raise Unsupported(f"'{name}' as it is called here")


def _is_index(given: Any) -> bool:
    if isinstance(given, Value):
        return not given.dtype.is_floating_point and given.dtype != torch.uint8
    return isinstance(given, Constant) and not given.tensor.is_floating_point()


def _known(given: Given) -> Tensor:
    if isinstance(given, Value):
        raise Unsupported("an index that is computed")
    return given.tensor


def rearranged(tape: Tape, numbers: Tensor, values: list[Value], starts: list[int], fill: float) -> Value:
    """Elements of some values by their numbers: those of a value count from its start on, and 0 is ``fill``."""
    flat = numbers.reshape(-1)
    ends = [start + value.size for start, value in zip(starts, values, strict=True)]
    for value, start, end in zip(values, starts, ends, strict=True):
        inside = (flat >= start) & (flat < end)
        if bool((inside | (flat == 0)).all()) and bool(inside.any()):
            return tape.gathered(value, torch.where(numbers == 0, -1, numbers - start), fill)
    owner = torch.bucketize(flat, torch.tensor(starts), right=True)  # 0: fill
    cuts = [0, *(torch.nonzero(owner[1:] != owner[:-1]).flatten() + 1).tolist(), flat.numel()]
    if len(cuts) - 1 > MOST_PIECES or bool((owner == 0).any()):
        together = tape.new((sum(value.size for value in values),), values[0].dtype)
        at = 0
        for value in values:
            tape.gather_into(_behind(together, at), value, torch.arange(value.size))
            at += value.size
        return tape.gathered(together, numbers - 1, fill)  # values are numbered one after the other, from 1 on
    result = tape.new(numbers.shape, values[0].dtype)
    for begin, end in pairwise(cuts):
        source = int(owner[begin]) - 1
        tape.gather_into(_behind(result, begin), values[source], flat[begin:end] - starts[source])
    return result


def _behind(value: Value, offset: int) -> Place:
    return Place(value.place.buffer, value.place.offset + offset)
