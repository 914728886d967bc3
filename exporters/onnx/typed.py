"""The step graph as TensorRT takes it: strongly typed, so the precision of every product is written in the graph.

Only the large matrices change; gates, norms, softplus, exponentials and the state stay float32 whatever the
precision. A product with a quantized matrix becomes

* fp16, bf16: the input is cast, the product is taken in 16 bits, the result is cast back;
* int8: codes times one scale per output (``DequantizeLinear``), the product in float32;
* int4: codes times one scale per 64 inputs, the product in float32.

There is no int8g: TensorRT's dequantization takes blocks of 4-bit codes only.

TensorRT keeps the codes as they are in the engine. What it does not take is avoided: zero points, scales that are
0, and 16-bit weights cast to float32, which it would fold into float32 weights. Norms and everything else that is
not a product with a large matrix is plain float32 arithmetic of the ONNX standard.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from lram_export.exporters.onnx.codes import rewrite_projections
from lram_export.exporters.onnx.graph import build_onnx
from lram_export.lowering import LoweredPolicy
from lram_export.spec.codes import QuantizedMatrix
from lram_export.spec.precision import GROUP

INT4_OPSET = 21
"""First opset whose DequantizeLinear takes 4-bit codes in blocks; nothing else in the graph changed since 18."""

HALF_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def build_typed_onnx(policy: LoweredPolicy) -> ir.Model:
    """The step graph with the policy's precision in it, for the caller to save."""
    model = build_onnx(policy)
    if policy.quantization is not None:
        matrices = policy.quantization.matrices
        rewrite_projections(model, matrices, typed_product)
        if any(matrix.format == "int4" for matrix in matrices.values()):
            model.graph.opset_imports[""] = INT4_OPSET
    return model


def typed_product(tape: Tape, x: ir.Value, matrix: QuantizedMatrix) -> ir.Value:
    """The product of an input (..., in) float32 with a quantized matrix; returns (..., out) float32."""
    products: dict[str, Callable[[Tape, ir.Value, QuantizedMatrix], ir.Value]]
    products = {"int8": _int8_product, "int4": _int4_product, **dict.fromkeys(HALF_TYPES, _half_product)}
    return products[matrix.format](tape, x, matrix)


def _half_product(tape: Tape, x: ir.Value, matrix: QuantizedMatrix) -> ir.Value:
    codes = matrix.codes.view(ml_dtypes.bfloat16) if matrix.format == "bf16" else matrix.codes
    weight = _initializer(tape, matrix, "codes", codes.T)
    product = tape.op("MatMul", [tape.op("Cast", [x], {"to": HALF_TYPES[matrix.format]}), weight])
    return tape.op("Cast", [product], {"to": ir.DataType.FLOAT})


def _int8_product(tape: Tape, x: ir.Value, matrix: QuantizedMatrix) -> ir.Value:
    codes = _initializer(tape, matrix, "codes", matrix.codes.T)
    scales = _initializer(tape, matrix, "scales", _nonzero(matrix.scales[:, 0]))
    return tape.op("MatMul", [x, tape.op("DequantizeLinear", [codes, scales], {"axis": 1})])


def _int4_product(tape: Tape, x: ir.Value, matrix: QuantizedMatrix) -> ir.Value:
    padding = -matrix.shape[1] % GROUP  # TensorRT takes whole blocks only
    codes = np.pad(matrix.codes, ((0, 0), (0, padding))).astype(ml_dtypes.int4)
    stored = _initializer(tape, matrix, "codes", codes.T)
    scales = _initializer(tape, matrix, "scales", _nonzero(matrix.scales.T))
    if padding:
        assert x.shape is not None
        ends = np.array([0] * (2 * len(x.shape) - 1) + [padding], np.int64)
        x = tape.op("Pad", [x, _initializer(tape, matrix, "padding", ends)])
    return tape.op("MatMul", [x, tape.op("DequantizeLinear", [stored, scales], {"axis": 0, "block_size": GROUP})])


def _nonzero(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """TensorRT refuses a scale of 0; where there is one, all codes are 0, so any other scale means the same."""
    return np.where(scales == 0, np.float32(1), scales)


def _initializer(tape: Tape, matrix: QuantizedMatrix, part: str, values: NDArray[Any]) -> ir.Value:
    return tape.initializer(ir.tensor(np.ascontiguousarray(values), name=f"{matrix.name}.{part}"))
