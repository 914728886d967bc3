"""Puts quantized matrices into an ONNX step graph: the codes stay in the bundle's one file, the graph refers to them.

Every product of the graph with a quantized matrix is replaced by a form that computes with the codes. A product
has the name of its matrix (see :mod:`~lram_export.exporters.onnx.graph`): two matrices may hold the same values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.convenience import replace_nodes_and_values
from onnx_ir.tape import Tape

from lram_export.errors import LramError
from lram_export.spec.codes import CODES, QUANTIZED_FILE, SCALES, QuantizedMatrix

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class StoredMatrix:
    """A quantized matrix as initializers that lie in the bundle's ``quantized.safetensors``."""

    matrix: QuantizedMatrix
    codes: ir.ExternalTensor
    scales: ir.ExternalTensor | None


Form = Callable[[Tape, ir.Value, StoredMatrix], ir.Value]
"""Emits the nodes of the product of an input (..., in) with a stored matrix; returns (..., out)."""


Product = Callable[[Tape, ir.Value, QuantizedMatrix], ir.Value]
"""Emits the nodes of the product of an input (..., in) with a matrix; returns (..., out)."""


@dataclass(frozen=True)
class Projection:
    """A product with a quantized matrix in the graph: its node, input, bias and the matrix."""

    node: ir.Node
    input: ir.Value
    bias: ir.Value | None
    matrix: QuantizedMatrix


def quantize_onnx(
    model: ir.Model, matrices: Mapping[str, QuantizedMatrix], directory: Path, form: Callable[[QuantizedMatrix], Form]
) -> None:
    """Replace every product with a quantized matrix by its form, in place, with the codes in a folder's
    ``quantized.safetensors``; see :func:`rewrite_projections`."""
    stored = stored_matrices(directory, matrices)
    rewrite_projections(model, matrices, lambda tape, x, matrix: form(matrix)(tape, x, stored[matrix.name]))


def rewrite_projections(model: ir.Model, matrices: Mapping[str, QuantizedMatrix], product: Product) -> None:
    """Replace every product with a quantized matrix by the nodes that ``product`` emits, in place.

    Raises:
        LramError: see :func:`find_projections`.
    """
    for projection in find_projections(model.graph, matrices):
        tape, given = Tape(), projection.node.inputs[0]  # its input now: that may be a product that was replaced
        assert given is not None
        result = product(tape, given, projection.matrix)
        if projection.bias is not None:
            result = tape.op("Add", [result, projection.bias])
        for value in tape.initializers:
            model.graph.register_initializer(value)
        if any(node.domain == MICROSOFT for node in tape.nodes):
            model.graph.opset_imports[MICROSOFT] = 1
        replace_nodes_and_values(
            model.graph, projection.node, [projection.node], tape.nodes, projection.node.outputs, [result]
        )
    remove_unused(model)


def remove_unused(model: ir.Model) -> None:
    """Drop the float32 values that no node reads any more."""
    ir.passes.common.RemoveUnusedNodesPass()(model)


def find_projections(graph: ir.Graph, matrices: Mapping[str, QuantizedMatrix]) -> list[Projection]:
    """The products named after the matrices, in the graph's order.

    Raises:
        LramError: a matrix has no product in the graph, or not one, or one with other values than it stands for
            (our bug; the export would compute with other weights).
    """
    found: dict[str, Projection] = {}
    for node in graph:
        name = node.name or ""
        if name not in matrices or node.op_type not in ("MatMul", "Gemm"):
            continue
        x, weight, *bias = node.inputs
        values = None if weight is None else constant_matrix(weight)
        transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
        expected = matrices[name].dequantize()
        if values is None or x is None or not np.array_equal(values if transposed else values.T, expected):
            raise LramError(f"{name}: the product in the ONNX graph has other values than this matrix")
        if name in found:
            raise LramError(f"{name}: more than one product with this matrix in the ONNX graph")
        found[name] = Projection(node, x, bias[0] if bias else None, matrices[name])
    missing = sorted(set(matrices) - set(found))
    if missing:
        raise LramError(f"{missing[0]}: no product with this matrix in the ONNX graph")
    return list(found.values())


def name_weights(model: ir.Model, matrices: Mapping[str, QuantizedMatrix]) -> None:
    """Give every product with a quantized matrix a constant of its own, named by :func:`weight_name`, in place."""
    for projection in find_projections(model.graph, matrices):
        weight, name = projection.node.inputs[1], weight_name(projection.matrix)
        values = None if weight is None else constant_matrix(weight)
        assert values is not None
        tensor = ir.tensor(values, name=name)  # shares the memory
        own = ir.Value(name=name, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        model.graph.register_initializer(own)
        projection.node.replace_input_with(1, own)
    remove_unused(model)


def weight_name(matrix: QuantizedMatrix) -> str:
    """Name of the constant that :func:`name_weights` makes for a matrix."""
    return f"{matrix.name}.dequantized"


def constant_matrix(value: ir.Value) -> NDArray[np.float32] | None:
    """The values of a two-dimensional constant, also behind a transposition, else None."""
    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose" and producer.inputs[0] is not None:
        inner = constant_matrix(producer.inputs[0])
        return None if inner is None else inner.T
    tensor = value.const_value
    if tensor is None or len(tensor.shape) != 2:
        return None
    values: NDArray[np.float32] = tensor.numpy()
    return values


def stored_matrices(directory: Path, matrices: Mapping[str, QuantizedMatrix]) -> dict[str, StoredMatrix]:
    """Initializers that refer to ``quantized.safetensors`` in a folder."""
    path = directory / QUANTIZED_FILE
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_size))

    def external(name: str, dtype: ir.DataType) -> ir.ExternalTensor:
        begin, end = header[name]["data_offsets"]
        return ir.ExternalTensor(
            QUANTIZED_FILE,
            8 + header_size + begin,
            end - begin,
            dtype,
            shape=ir.Shape(header[name]["shape"]),
            name=name,
            base_dir=directory,
        )

    types = {"U8": ir.DataType.UINT8, "I8": ir.DataType.INT8, "F16": ir.DataType.FLOAT16, "U16": ir.DataType.BFLOAT16}
    return {
        name: StoredMatrix(
            matrix,
            external(name + CODES, types[header[name + CODES]["dtype"]]),
            external(name + SCALES, ir.DataType.FLOAT) if name + SCALES in header else None,
        )
        for name, matrix in matrices.items()
    }
