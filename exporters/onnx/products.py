"""How a product with a quantized matrix is written in ONNX: what ONNX Runtime's CPU kernels run fast and right.

Its fast integer kernels take 8-bit activations: rounding activations to 8 bits once costs 1 to 3% of the
output over a run. So an input is split into two 8-bit planes, what 8 bits hold of it and 8 bits of what is
left, and both are multiplied: about 15 bits, which keeps the error near 1e-4.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from lram_export.exporters.onnx.codes import MICROSOFT, Form, StoredMatrix
from lram_export.spec.codes import QuantizedMatrix
from lram_export.spec.precision import FORMATS

INT8_ACTIVATIONS = 4
"""`accuracy_level` of MatMulNBits: round activations to 8 bits, per block; its float32 kernels are slower."""
SMALLEST_SCALE = 1e-30
UNSIGNED, LARGEST_CODE = 128, 127
"""Codes are stored as code + 128, and are at most 127 in magnitude."""


def form_of(matrix: QuantizedMatrix) -> Form:
    """The form for a matrix's format."""
    if matrix.activation is not None:
        return static_ranges
    return {"int8": two_planes, "int8g": two_planes_in_blocks, "int4": two_planes_in_blocks}.get(
        matrix.format, half_weights
    )


def half_weights(tape: Tape, x: ir.Value, stored: StoredMatrix) -> ir.Value:
    """16-bit weights, converted once when the model is loaded."""
    weights = tape.op("Cast", [tape.initializer(stored.codes)], {"to": ir.DataType.FLOAT})
    return tape.op("MatMul", [x, tape.op("Transpose", [weights], {"perm": [1, 0]})])


def two_planes(tape: Tape, x: ir.Value, stored: StoredMatrix) -> ir.Value:
    """int8 weights and two 8-bit planes of the input, with a scale for every token; operators of the standard only.

    Both planes are rows of one product, which reads the weights once. The weights are moved to unsigned codes when the
    model is loaded: sums of unsigned with signed products saturate on x64 processors without VNNI.
    """
    signed, scales = _columns(tape, stored)

    def constant(value: np.ndarray | np.generic, name: str) -> ir.Value:
        return _constant(tape, value, stored, name)

    wide = tape.op("Cast", [signed], {"to": ir.DataType.INT16})
    shifted = tape.op("Add", [wide, constant(np.int16(UNSIGNED), "shift")])
    weights = tape.op("Cast", [shifted], {"to": ir.DataType.UINT8})
    zero = constant(np.uint8(UNSIGNED), "zero_point")

    largest = tape.op("ReduceMax", [tape.op("Abs", [x]), constant(np.array([-1], np.int64), "axis")], {"keepdims": 1})
    largest = tape.op("Max", [largest, constant(np.float32(SMALLEST_SCALE), "smallest")])
    step = tape.op("Mul", [largest, constant(np.float32(1 / LARGEST_CODE), "step")])
    scaled = tape.op("Div", [x, step])
    high = tape.op("Round", [scaled])
    rest = tape.op("Mul", [tape.op("Sub", [scaled, high]), constant(np.float32(2 * LARGEST_CODE), "finer")])
    planes = tape.op("Concat", [high, rest], {"axis": -2})  # what is left is at most half a step, so both fit
    codes = tape.op("QuantizeLinear", [planes, constant(np.float32(1), "one"), zero])
    sums = tape.op("Cast", [tape.op("MatMulInteger", [codes, weights, zero, zero])], {"to": ir.DataType.FLOAT})
    of_high, of_rest = tape.op_multi_out("Split", [sums], {"axis": -2, "num_outputs": 2}, num_outputs=2)
    of_rest = tape.op("Mul", [of_rest, constant(np.float32(0.5 / LARGEST_CODE), "coarser")])
    return tape.op("Mul", [tape.op("Add", [of_high, of_rest]), tape.op("Mul", [step, scales])])


def two_planes_in_blocks(tape: Tape, x: ir.Value, stored: StoredMatrix) -> ir.Value:
    """int4 or int8g weights in MatMulNBits, which rounds activations to 8 bits in blocks of a group.

    The first plane is what that rounding leaves of the input, so the operator finds its codes exactly; the
    second is the rest. Both go through the operator in one call, which reads the weights once.
    """
    rows, columns = stored.matrix.shape
    assert stored.scales is not None
    blocks, group, bits = stored.matrix.scales.shape[1], stored.matrix.group, FORMATS[stored.matrix.format].bits
    padded = x
    if columns % group:
        end = _constant(tape, np.array([0] * (len(_shape(x)) * 2 - 1) + [-columns % group], np.int64), stored, "pad")
        padded = tape.op("Pad", [x, end])
    in_blocks = tape.op(
        "Reshape", [padded, _constant(tape, np.array([*_shape(x)[:-1], blocks, group], np.int64), stored, "blocks")]
    )
    last = _constant(tape, np.array([-1], np.int64), stored, "axis")
    largest = tape.op("ReduceMax", [tape.op("Abs", [in_blocks]), last], {"keepdims": 1})
    step = tape.op("Mul", [largest, _constant(tape, np.float32(1 / LARGEST_CODE), stored, "step")])
    step = tape.op("Max", [step, _constant(tape, np.float32(SMALLEST_SCALE), stored, "smallest")])
    rounded = tape.op("Mul", [tape.op("Round", [tape.op("Div", [in_blocks, step])]), step])
    shape = np.array([*_shape(x)[:-1], blocks * group], np.int64)
    high = tape.op("Reshape", [rounded, _constant(tape, shape, stored, "shape")])
    if columns % group:
        start, stop = (_constant(tape, np.array([v], np.int64), stored, n) for n, v in (("from", 0), ("to", columns)))
        high = tape.op("Slice", [high, start, stop, last])
    planes = tape.op("Concat", [high, tape.op("Sub", [x, high])], {"axis": -2})
    products = tape.op(
        "MatMulNBits",
        [planes, _reshaped(tape, stored.codes, (rows, blocks, group * bits // 8)), tape.initializer(stored.scales)],
        {"K": columns, "N": rows, "bits": bits, "block_size": group, "accuracy_level": INT8_ACTIVATIONS},
        domain=MICROSOFT,
    )
    high_product, low_product = tape.op_multi_out("Split", [products], {"axis": -2, "num_outputs": 2}, num_outputs=2)
    return tape.op("Add", [high_product, low_product])


def static_ranges(tape: Tape, x: ir.Value, stored: StoredMatrix) -> ir.Value:
    """int8 weights and 8-bit inputs in a static range, as pairs of QuantizeLinear and DequantizeLinear."""
    activation = stored.matrix.activation
    assert activation is not None
    scale = _constant(tape, np.float32(activation.scale), stored, "activation_scale")
    zero_point = _constant(tape, np.uint8(activation.zero_point), stored, "activation_zero_point")
    rounded = tape.op("DequantizeLinear", [tape.op("QuantizeLinear", [x, scale, zero_point]), scale, zero_point])
    codes, scales = _columns(tape, stored)
    return tape.op("MatMul", [rounded, tape.op("DequantizeLinear", [codes, scales], {"axis": 1})])


def _columns(tape: Tape, stored: StoredMatrix) -> tuple[ir.Value, ir.Value]:
    """Codes as (in, out), turned when the model is loaded, and scales as (out,)."""
    assert stored.scales is not None
    codes = tape.op("Transpose", [tape.initializer(stored.codes)], {"perm": [1, 0]})
    return codes, _reshaped(tape, stored.scales, (stored.matrix.shape[0],))


def _reshaped(tape: Tape, tensor: ir.ExternalTensor, shape: tuple[int, ...]) -> ir.Value:
    """The same bytes of the file under another shape."""
    view = ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(shape),
        name=tensor.name,
        base_dir=tensor.base_dir,
    )
    return tape.initializer(view)


def _constant(tape: Tape, value: np.ndarray | np.generic, stored: StoredMatrix, name: str) -> ir.Value:
    return tape.initializer(ir.tensor(np.asarray(value), name=f"{stored.matrix.name}.{name}"))


def _shape(x: ir.Value) -> tuple[int, ...]:
    """The sizes of an input as a Reshape takes them: -1 where there are as many as there are rows."""
    assert x.shape is not None
    return tuple(size if isinstance(size, int) else -1 for size in x.shape)
