"""What a program is written to: values of one row, the instructions that compute them, and constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lram_export.targets.native.format import Tensor as StoredTensor
from lram_export.targets.native.format import filled_tiles, plain
from lram_export.targets.native.program import BufferKind, Function, Instruction, Operation, Place, Reduction

Number = float | int | bool


class Unsupported(Exception):
    """What the engine cannot compute, in words that follow "it has no kernel for"."""


@dataclass(frozen=True)
class Value:
    """A tensor of one row, or one that all rows share: its elements one after the other from a place on."""

    place: Place
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def reshaped(self, *shape: int) -> Value:
        """The same elements in another shape."""
        return replace(self, shape=shape)


@dataclass(frozen=True)
class Constant:
    """A tensor that is known; ``matrix`` is the large matrix of the step graph that it is, ``transposed`` or not."""

    tensor: Tensor
    matrix: str | None = None
    transposed: bool = False


@dataclass
class Buffer:
    """Numbers of a row: ``size`` of them; ``number`` is that of the state or the tensor that they are."""

    kind: BufferKind
    size: int
    number: int = 0


@dataclass
class Tape:
    """A program as it is written, instruction after instruction."""

    buffers: list[Buffer] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    tensors: list[StoredTensor] = field(default_factory=list)
    _known: dict[bytes, int] = field(default_factory=dict)

    # -- values

    def new(self, shape: Sequence[int], dtype: torch.dtype = torch.float32, room: int | None = None) -> Value:
        """A value of a step's own, not computed yet, with room for more floats than it has elements.

        Raises:
            Unsupported: it has none.
        """
        size = math.prod(shape)
        if size == 0:
            raise Unsupported("tensors without elements")
        self.buffers.append(Buffer(BufferKind.ARENA, max(size, room or 0)))
        return Value(Place(len(self.buffers) - 1), tuple(shape), dtype)

    def state(self, number: int, shape: Sequence[int]) -> Value:
        """A state, as it is before the step."""
        self.buffers.append(Buffer(BufferKind.STATE, math.prod(shape), number))
        return Value(Place(len(self.buffers) - 1), tuple(shape))

    def tensor(self, stored: StoredTensor) -> Place:
        """A tensor of the file."""
        self.tensors.append(replace(stored, number=len(self.tensors)))
        self.buffers.append(Buffer(BufferKind.CONSTANT, 0, len(self.tensors) - 1))
        return Place(len(self.buffers) - 1)

    def floats(self, values: NDArray[np.float32]) -> Place:
        """Plain floats, each array once."""
        key = values.tobytes()
        if key not in self._known:
            self._known[key] = self.tensor(plain(0, 0, values.reshape(1, -1))).buffer
        return Place(self._known[key])

    def places(self, index: Tensor) -> Place:
        """Whole numbers, as bits of floats."""
        return self.floats(index.to(torch.int32).numpy().reshape(-1).view(np.float32))

    def constant(self, tensor: Tensor) -> Value:
        """A value that all rows share.

        Raises:
            Unsupported: whole numbers that float32 does not hold.
        """
        values = tensor.detach().to(torch.float32).contiguous()
        if not tensor.is_floating_point() and not torch.equal(values.to(tensor.dtype), tensor):
            raise Unsupported("whole numbers beyond 16777216")
        return Value(self.floats(values.numpy()), tuple(tensor.shape), tensor.dtype)

    def value(self, given: Value | Constant | Number) -> Value:
        """What is given, as a value."""
        if isinstance(given, Value):
            return given
        return self.constant(given.tensor if isinstance(given, Constant) else torch.tensor(float(given)))

    # -- instructions

    def emit(self, operation: Operation, sizes: Sequence[int], *operands: Place, function: int = 0) -> None:
        """The next instruction."""
        self.instructions.append(Instruction(operation, tuple(sizes), operands, function))

    def apply(self, function: Function, *given: Value | Constant | Number, dtype: torch.dtype = torch.float32) -> Value:
        """A function of numbers, over the common shape of its operands, see :func:`broadcast`."""
        operands = [self.value(operand) for operand in given]
        shape = torch.broadcast_shapes(*(operand.shape for operand in operands))
        views = broadcast(shape, [operand.shape for operand in operands])
        if views is None:  # no two loops reach all of them: first all have the shape of the result
            operands = [self.expanded(operand, shape) for operand in operands]
            views = broadcast(shape, [shape] * len(operands))
            assert views is not None
        result = self.new(shape, dtype)
        outer = [view.outer for view in views.operands]
        steps = sum(view.inner << i for i, view in enumerate(views.operands))
        sizes = (views.times, views.count, *outer, *(3 - len(outer)) * (0,), steps)
        self.emit(Operation.POINTWISE, sizes, result.place, *(o.place for o in operands), function=function)
        return result

    def expanded(self, value: Value, shape: Sequence[int]) -> Value:
        """A value repeated to a shape that it can be broadcast to."""
        index = torch.arange(value.size).view(value.shape).expand(*shape)
        return self.gathered(value, index)

    def gathered(self, value: Value, index: Tensor, fill: float = 0.0, room: int | None = None) -> Value:
        """Elements of a value by their numbers, in the shape of ``index``; -1: ``fill``. A view where they are
        neighbours."""
        flat = index.reshape(-1)
        if room is None and flat.numel() and flat[0] >= 0 and torch.equal(flat, flat[0] + torch.arange(flat.numel())):
            place = Place(value.place.buffer, value.place.offset + int(flat[0]))
            return Value(place, tuple(index.shape), value.dtype)
        result = self.new(index.shape, value.dtype, room)
        self.gather_into(result.place, value, flat, fill)
        return result

    def gather_into(self, place: Place, value: Value, flat: Tensor, fill: float = 0.0) -> None:
        """The same, to a place."""
        if flat.numel() and flat[0] >= 0 and torch.equal(flat, flat[0] + torch.arange(flat.numel())):
            start = Place(value.place.buffer, value.place.offset + int(flat[0]))
            self.emit(Operation.COPY, (flat.numel(),), place, start)
            return
        filling = self.constant(torch.tensor(fill)).place
        sizes = (flat.numel(), value.size)
        self.emit(Operation.GATHER, sizes, place, value.place, self.places(flat), filling)

    def reduced(self, reduction: Reduction, value: Value, length: int, dtype: torch.dtype = torch.float32) -> Value:
        """The last ``length`` elements of each of the others, as one; the shape is flat."""
        count = value.size // length
        result = self.new((count,), dtype)
        self.emit(Operation.REDUCE, (count, length), result.place, value.place, function=reduction)
        return result

    def zeros(self, count: int) -> Place:
        """As many zeros that all rows share."""
        return self.floats(np.zeros(count, np.float32))

    def bias(self, tensor: Tensor | None, count: int) -> Place:
        """A number per output of a matrix, filled up to whole tiles; None: zeros."""
        values = np.zeros(count, np.float32) if tensor is None else tensor.detach().float().numpy()
        return self.floats(filled_tiles(np.ascontiguousarray(values)))


@dataclass(frozen=True)
class View:
    """How two loops go through an operand: floats from one of the outer ones to the next, and of the inner: 0 or 1."""

    outer: int
    inner: int


@dataclass(frozen=True)
class Views:
    """Two loops over the elements of a result, and how they go through each operand."""

    times: int
    count: int
    operands: tuple[View, ...]


def broadcast(shape: Sequence[int], operands: Sequence[Sequence[int]]) -> Views | None:
    """Two loops that go through operands of several shapes as if each had ``shape``; None where there are none."""
    strides = [_strides(shape, operand) for operand in operands]
    axes: list[tuple[int, list[int]]] = []
    for axis, extent in enumerate(shape):
        if extent == 1:
            continue
        steps = [stride[axis] for stride in strides]
        if axes and all(step * extent == last for step, last in zip(steps, axes[-1][1], strict=True)):
            axes[-1] = (axes[-1][0] * extent, steps)
        else:
            axes.append((extent, steps))
    axes = axes or [(math.prod(shape), [0] * len(operands))]
    if len(axes) > 2 or any(step not in (0, 1) for step in axes[-1][1]):
        return None
    if len(axes) == 1:
        axes = [(1, [0] * len(operands)), *axes]
    (times, outer), (count, inner) = axes
    return Views(times, count, tuple(View(o, i) for o, i in zip(outer, inner, strict=True)))


def _strides(shape: Sequence[int], operand: Sequence[int]) -> list[int]:
    """Floats from one element to the next along each axis of ``shape``, 0 where the operand is repeated."""
    padded = [1] * (len(shape) - len(operand)) + list(operand)
    found, step = [0] * len(shape), 1
    for axis in reversed(range(len(shape))):
        found[axis] = 0 if padded[axis] == 1 else step
        step *= padded[axis]
    return found
