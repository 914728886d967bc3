"""Matrices of a policy as tensors of the artifact: whole, or in parts that threads and heads read by themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.lowering import LoweredModel
from lram_export.spec.codes import QuantizedMatrix
from lram_export.spec.precision import FORMATS, GROUP, WIDE_GROUP
from lram_export.spec.tensors import array
from lram_export.targets.native.format import CODE_FORMATS, Tensor, room_of, tiled_codes, tiled_float32

Matrix = NDArray[np.float32] | QuantizedMatrix


class Matrices:
    """The large matrices of a policy, in the formats that the kernels multiply with."""

    def __init__(self, policy: LoweredModel) -> None:
        self._graph = policy.graph
        self._codes = {} if policy.quantization is None else dict(policy.quantization.matrices)
        self._one_plane = policy.quantization is not None and policy.quantization.quantized_activations

    @property
    def backbone(self) -> Any:
        """The backbone's part of the step graph."""
        graph: Any = self._graph
        return graph.backbone

    def linear(self, name: str) -> Matrix:
        """A large matrix: its codes if it has any that the kernels multiply with, else float32 values."""
        matrix = self._codes.get(name)
        if matrix is not None and matrix.format in CODE_FORMATS:
            return matrix
        layer: Any = self._graph.layers()[name]
        return array(layer.weight)

    def tiled(self, role: int, number: int, parts: Sequence[Matrix], matrix: str | None = None) -> Tensor:
        """Matrices of one shape, one after the other; ``matrix`` is the large matrix that they are parts of."""
        first = parts[0]
        if not isinstance(first, QuantizedMatrix):
            tensor = tiled_float32(role, number, [p for p in parts if not isinstance(p, QuantizedMatrix)])
            return dataclasses.replace(tensor, matrix=matrix)
        coded = [(p.codes, p.scales) for p in parts if isinstance(p, QuantizedMatrix)]
        tensor = tiled_codes(role, number, first.format, coded)
        return dataclasses.replace(tensor, matrix=matrix, two_planes=self._one_plane and first.activation is None)


def rows(matrix: Matrix, start: int, count: int) -> Matrix:
    """Rows from ``start``; beyond the last they are 0."""

    def part(values: NDArray[Any]) -> NDArray[Any]:
        found = values[start : start + count]
        return np.concatenate([found, np.zeros((count - len(found), *values.shape[1:]), values.dtype)])

    if isinstance(matrix, QuantizedMatrix):
        return dataclasses.replace(matrix, codes=part(matrix.codes), scales=part(matrix.scales))
    return part(matrix)


def stacked(matrices: Sequence[Matrix]) -> Matrix:
    """Rows of some matrices, one below the other; they have the same columns and format."""
    quantized = [m for m in matrices if isinstance(m, QuantizedMatrix)]
    if not quantized:
        return np.concatenate([m for m in matrices if not isinstance(m, QuantizedMatrix)])
    codes, scales = (np.concatenate([getattr(m, name) for m in quantized]) for name in ("codes", "scales"))
    return dataclasses.replace(quantized[0], codes=codes, scales=scales)


def columns(matrix: Matrix, chosen: NDArray[np.int64], width: int | None = None) -> Matrix:
    """Chosen columns, filled up with zeros to ``width``; of formats with groups neighbours, see :func:`divisible`."""
    padding = 0 if width is None else width - len(chosen)

    def part(values: NDArray[Any]) -> NDArray[Any]:
        return np.pad(values[:, chosen], ((0, 0), (0, padding)))

    if not isinstance(matrix, QuantizedMatrix):
        return part(matrix)
    scales = matrix.scales
    if FORMATS[matrix.format].group:
        groups = -(-(len(chosen) + padding) // matrix.group)
        first = int(chosen[0]) // matrix.group if len(chosen) else 0
        scales = scales[:, first : first + groups]
        scales = np.pad(scales, ((0, 0), (0, groups - scales.shape[1])))
    return dataclasses.replace(matrix, codes=part(matrix.codes), scales=scales)


def roomy(matrix: Matrix) -> Matrix:
    """Columns filled up with zeros to the width that kernels compute."""
    return columns(matrix, np.arange(matrix.shape[1]), room_of(matrix.shape[1]))


def divisible(matrix: Matrix, width: int) -> bool:
    """Whether slices so wide have scales of their own: whole groups, or, of int8g, whose last group may be short, a
    part of one."""
    if not isinstance(matrix, QuantizedMatrix) or not FORMATS[matrix.format].group:
        return True
    return width % matrix.group == 0 or (matrix.format == "int8g" and matrix.group % width == 0)


def slice_width(columns: int, count: int, matrices: Sequence[Matrix]) -> int:
    """Width of at most ``count`` slices of some columns, in which threads multiply ``matrices``: whole groups."""
    width = -(-columns // (count * GROUP)) * GROUP
    return width if all(divisible(m, width) for m in matrices) else -(-width // WIDE_GROUP) * WIDE_GROUP


def column_slices(matrix: Matrix, width: int, count: int) -> list[Matrix]:
    """Columns in ``count`` slices, each with its room; float32 where they are not :func:`divisible`."""
    if isinstance(matrix, QuantizedMatrix) and not divisible(matrix, width):
        matrix = matrix.dequantize()
    total = matrix.shape[1]
    ranges = [np.arange(min(i * width, total), min((i + 1) * width, total)) for i in range(count)]
    return [columns(matrix, chosen, room_of(width)) for chosen in ranges]
