"""Products of matrices: with weights, in tiles that the engine's kernels read, or of two that a step computes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lram_export.exporters.native.matrices import roomy
from lram_export.exporters.native.program.tape import Constant, Tape, Unsupported, Value
from lram_export.spec.codes import QuantizedMatrix
from lram_export.targets.layout import TILE
from lram_export.targets.native.format import CODE_FORMATS, room_of, tiled_codes, tiled_float32
from lram_export.targets.native.format import Tensor as StoredTensor
from lram_export.targets.native.program import Function, Operation

MOST_TOKENS, MOST_EXTENT = 1 << 16, 1 << 14


@dataclasses.dataclass(frozen=True)
class Codes:
    """The quantized matrices of a policy by name, and whether activations have codes of one plane."""

    matrices: Mapping[str, QuantizedMatrix]
    one_plane: bool

    def of(self, weight: Constant) -> QuantizedMatrix | None:
        """Those that a weight (outputs, inputs) stands for, if the engine multiplies with them."""
        found = None if weight.matrix is None or weight.transposed else self.matrices.get(weight.matrix)
        return found if found is not None and found.format in CODE_FORMATS else None


def linear(tape: Tape, codes: Codes, given: Value, weight: Constant, bias: Constant | None) -> Value:
    """``given`` (..., inputs) times a weight (outputs, inputs), plus a bias."""
    matrix = codes.of(weight)
    if matrix is None:
        stored = stored_floats(weight.tensor)
    else:
        given = with_room(tape, given, room_of(given.shape[-1]))
        stored = stored_codes(matrix, codes.one_plane)
    stored = dataclasses.replace(stored, matrix=weight.matrix)
    tokens = tokens_of(tape, given.reshaped(math.prod(given.shape[:-1]), given.shape[-1]))
    result = dense(tape, tokens, stored, None if bias is None else bias.tensor)
    return result.reshaped(*given.shape[:-1], stored.rows)


def stored_floats(matrix: Tensor) -> StoredTensor:
    """A matrix (outputs, inputs) in tiles."""
    values: NDArray[np.float32] = np.ascontiguousarray(matrix.detach().float().numpy())
    return tiled_float32(0, 0, [values])


def stored_codes(matrix: QuantizedMatrix, one_plane: bool) -> StoredTensor:
    """Codes of a matrix in tiles, with room for the inputs that kernels read."""
    roomy_matrix = roomy(matrix)
    assert isinstance(roomy_matrix, QuantizedMatrix)
    stored = tiled_codes(0, 0, matrix.format, [(roomy_matrix.codes, roomy_matrix.scales)])
    return dataclasses.replace(stored, two_planes=one_plane and matrix.activation is None)


def with_room(tape: Tape, value: Value, width: int) -> Value:
    """The last axis filled up with zeros."""
    missing = width - value.shape[-1]
    if missing == 0:
        return value
    index = torch.arange(value.size).view(value.shape)
    return tape.gathered(value, torch.nn.functional.pad(index, (0, missing), value=-1))


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Some tokens (count, inputs), each ``step`` floats from the last."""

    value: Value
    step: int


def tokens_of(tape: Tape, value: Value) -> Tokens:
    """Those of a value (count, inputs). Where there are several, those of all rows of a batch have to lie one after
    the other, in a buffer of their own."""
    count, inputs = value.shape
    alone = value.place.offset == 0 and tape.buffers[value.place.buffer].size == count * inputs
    if count == 1 or (alone and inputs == room_of(inputs)):
        return Tokens(value, inputs)
    return gathered_tokens(tape, value, torch.arange(value.size).view(count, inputs))


def gathered_tokens(tape: Tape, value: Value, index: Tensor) -> Tokens:
    """Tokens of elements of a value by their numbers (count, inputs); -1: 0."""
    count, inputs = index.shape
    width = room_of(inputs)
    filled = torch.nn.functional.pad(index, (0, width - inputs), value=-1)
    own = tape.gathered(value, filled, room=count * width)
    return Tokens(own.reshaped(count, inputs), width)


def dense(tape: Tape, tokens: Tokens, matrix: StoredTensor, bias: Tensor | None) -> Value:
    """Tokens (count, inputs) times a matrix, plus a bias: (count, outputs)."""
    count, inputs = tokens.value.shape
    if count > MOST_TOKENS:
        raise Unsupported(f"products with more than {MOST_TOKENS} tokens")
    wide = -(-matrix.rows // TILE) * TILE
    result = tape.new((count, wide))
    sizes = (count, matrix.rows, inputs, tokens.step)
    places = tokens.value.place, tape.tensor(matrix), tape.bias(bias, matrix.rows)
    tape.emit(Operation.DENSE, sizes, result.place, *places)
    if count == 1 or wide == matrix.rows:
        return result.reshaped(count, matrix.rows)
    return tape.gathered(result, torch.arange(result.size).view(count, wide)[:, : matrix.rows])


def product(tape: Tape, left: Value, right: Value) -> Value:
    """(..., m, k) times (..., k, n), both of a step's own; the axes in front are the same."""
    rows, inner = left.shape[-2:]
    cols = right.shape[-1]
    times = math.prod(left.shape[:-2])
    if max(times, rows, inner, cols) > MOST_EXTENT:
        raise Unsupported(f"products of matrices beyond {MOST_EXTENT} rows or columns that a step computes")
    result = tape.new((*left.shape[:-2], rows, cols))
    tape.emit(Operation.PRODUCT, (times, rows, inner, cols), result.place, left.place, right.place)
    return result


def with_bias(tape: Tape, value: Value, bias: Value | Constant | None) -> Value:
    """The sum with what a product has beside it."""
    return value if bias is None else tape.apply(Function.ADD, value, bias)
