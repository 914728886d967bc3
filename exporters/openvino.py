"""Exporter of the target `openvino`: the step graph as a stateful model in OpenVINO's own format.

Every state tensor becomes a variable of its name: what was an input is read from the variable (``ReadValue``),
what was an output is written to it (``Assign``), so the state never crosses the model's interface.

The file is for as many rows as the policy is lowered for, so that it runs as it is, and says whether it may be
reshaped to any other number (:data:`~lram_export.spec.rows.FREE_ROWS`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import openvino as ov
from openvino import opset15 as ops
from openvino.op.util import Variable, VariableInfo

from lram_export.errors import LramError
from lram_export.exporters import ExportedArtifact
from lram_export.exporters.onnx.codes import name_weights, weight_name
from lram_export.exporters.onnx.graph import OPSET, build_onnx, save_onnx
from lram_export.lowering import LoweredModule, LoweredPolicy
from lram_export.progress import SILENT, Progress
from lram_export.spec.codes import QuantizedMatrix
from lram_export.spec.rows import ANY, FREE_ROWS
from lram_export.spec.tensors import InitialTensors, StateSpec, StepSpec, initial_values, next_name

MODEL_FILE = "model.xml"
WEIGHTS_FILE = "model.bin"
NUMBERED = re.compile(r"[A-Z][A-Za-z0-9]*_\d+")
"""OpenVINO's name of a node without one: its type and a number."""
MADE_OF = "fused_names_0"
SUMMED_TOKENS = 3
"""Of a step, up to which :func:`sum_outer_products` pays: OpenVINO divides a pass with more inputs than these bring."""


def export(policy: LoweredPolicy, directory: Path, progress: Progress = SILENT) -> ExportedArtifact:
    """Write ``model.xml`` and ``model.bin``."""
    import onnx
    import onnxscript
    import torch

    paths = (directory / MODEL_FILE, directory / WEIGHTS_FILE)
    with TemporaryDirectory(dir=directory) as folder:  # until the end: OpenVINO maps the weights of the ONNX file
        graph = build_onnx(policy)
        if policy.quantization is not None:
            name_weights(graph, policy.quantization.matrices)
        onnx_path, _ = save_onnx(graph, Path(folder), policy.spec)
        # not ov.convert_model: it does no more than this here, and sends statistics about its use
        model = ov.Core().read_model(onnx_path)
        fix_rows(model, policy.spec)
        if policy.quantization is not None:
            compress_weights(model, policy.quantization.matrices)
        if isinstance(policy, LoweredModule):
            keep_differences(model)
        sum_outer_products(model, policy.spec)
        make_stateful(model, policy.spec, policy.initial_tensors, guarded=isinstance(policy, LoweredModule))
        model.set_friendly_name(policy.name)
        name_nodes(model)
        ov.serialize(model, *paths)
        del model
    check_interface(ov.Core().read_model(paths[0]), policy.spec)
    tools = {
        "openvino": version("openvino"),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxscript": onnxscript.__version__,
        "opset": str(OPSET),
    }
    return ExportedArtifact(paths, tools, policy.weight_bytes)


def fix_rows(model: ov.Model, spec: StepSpec) -> None:
    """Give a model for any number of rows that of the specification, and note that it may have another."""
    if model.is_dynamic():
        tensors = (*spec.inputs, *spec.states)
        model.reshape({place: ov.PartialShape(list(tensor.shape)) for place, tensor in enumerate(tensors)})
        model.set_rt_info(ANY, list(FREE_ROWS))


def compress_weights(model: ov.Model, matrices: Mapping[str, QuantizedMatrix]) -> None:
    """Put codes and scales in the place of the quantized matrices, in the form that is executed compressed.

    A matrix is known by the name of its constant (:func:`~lram_export.exporters.onnx.codes.name_weights`).

    Raises:
        LramError: a matrix is not in the graph (our bug; the model would hold it in float32).
    """
    by_name = {weight_name(matrix): matrix for matrix in matrices.values()}
    found = set()
    for product in model.get_ordered_ops():
        if product.get_type_name() != "MatMul":
            continue
        matrix = by_name.get(product.input_value(1).get_node().get_friendly_name())
        if matrix is not None:
            compressed = ops.matmul(_widened(product.input_value(0), matrix), _compressed(matrix), False, True)
            compressed.set_friendly_name(matrix.name)
            product.output(0).replace(compressed.output(0))
            found.add(matrix.name)
    missing = sorted(set(matrices) - found)
    if missing:
        raise LramError(f"{missing[0]}: no product with this matrix in the OpenVINO model")


def sum_outer_products(model: ov.Model, spec: StepSpec) -> None:
    """Write what is added to a state matrix, keys^T values of the step's tokens, as a sum of products of each token.

    OpenVINO would write keys^T values to memory, a matrix as large as the state, and read it again. The sum it computes
    in the pass that lets the state decay, if that pass has no more inputs than :data:`SUMMED_TOKENS` bring.
    """
    results = dict(zip(spec.output_names, model.get_results(), strict=True))
    for tensor in spec.states:
        added = results[next_name(tensor.name)].input_value(0).get_node()
        if tensor.role != "matrix" or added.get_type_name() != "Add":
            continue
        for kept, product in (added.input_values(), added.input_values()[::-1]):
            operands = _outer_product(product.get_node())
            if operands is None:
                continue
            keys, values = operands
            for key, value in zip(_tokens(keys), _tokens(values), strict=True):
                column = ops.reshape(key, ops.constant(np.array([0, 0, -1, 1], np.int64)), True)
                kept = ops.add(kept, ops.multiply(column, value)).output(0)
            added.output(0).replace(kept)
            break


def _outer_product(node: ov.Node) -> tuple[ov.Output, ov.Output] | None:
    """Keys and values (rows, heads, tokens, width) where a node is keys^T values of few tokens, else None."""
    if node.get_type_name() != "MatMul":
        return None
    keys, values = node.input_values()
    attributes, shape = node.get_attributes(), keys.get_partial_shape()
    few = len(shape) == 4 and shape[2].is_static and shape[2].get_length() <= SUMMED_TOKENS
    return (keys, values) if attributes["transpose_a"] and not attributes["transpose_b"] and few else None


def _tokens(tensor: ov.Output) -> list[ov.Output]:
    """(rows, heads, tokens, width) -> (rows, heads, 1, width) of each token."""
    along = ops.constant(np.int64(2))
    parts: list[ov.Output] = ops.split(tensor, along, tensor.get_partial_shape()[2].get_length()).outputs()
    return parts


def keep_differences(model: ov.Model) -> None:
    """Compute (x - a) / b as it is written, for constants a and b.

    OpenVINO would make x / b - a / b of it: where a is large beside b, as the mean of an observation may be beside its
    deviation, both are large and nearly the same, and their difference is noise. It does not look through a Clamp.
    """
    largest = float(np.finfo(np.float32).max)
    for node in model.get_ordered_ops():
        if node.get_type_name() not in ("Add", "Subtract") or not _has_constant(node):
            continue
        if node.get_output_element_type(0) != ov.Type.f32:
            continue
        inputs = [i for i in node.output(0).get_target_inputs() if _is_scaling(i.get_node())]
        if inputs:
            kept = ops.clamp(node, -largest, largest)
            for target in inputs:
                target.replace_source_output(kept.output(0))


def _is_scaling(node: ov.Node) -> bool:
    return node.get_type_name() in ("Add", "Subtract", "Multiply", "Divide") and _has_constant(node)


def _has_constant(node: ov.Node) -> bool:
    return any(node.input_value(i).get_node().get_type_name() == "Constant" for i in range(2))


def _compressed(matrix: QuantizedMatrix) -> ov.Node:
    """A matrix (out, in) as constant codes, converted and scaled: OpenVINO folds neither."""
    rows, columns = matrix.shape
    if matrix.format == "bf16":
        halves = ov.Tensor(np.ascontiguousarray(matrix.codes), ov.Shape(matrix.shape), ov.Type.bf16)
        return ops.convert(ov.op.Constant(halves), "f32")
    if matrix.format == "fp16":
        return ops.convert(ops.constant(matrix.codes), "f32")
    if matrix.format == "int8":
        return ops.multiply(ops.convert(ops.constant(matrix.codes), "f32"), ops.constant(matrix.scales))
    groups, missing = matrix.scales.shape[1], _missing_columns(matrix)
    padded = np.pad(matrix.codes, ((0, 0), (0, missing)))
    stored = ov.Type.i4 if matrix.format == "int4" else ov.Type.i8
    codes = ov.op.Constant(stored, ov.Shape([rows, groups, matrix.group]), padded.ravel())
    scaled = ops.multiply(ops.convert(codes, "f32"), ops.constant(matrix.scales[..., None]))
    return ops.reshape(scaled, ops.constant([rows, columns + missing], ov.Type.i64), False)


def _missing_columns(matrix: QuantizedMatrix) -> int:
    """How many inputs the last group of a grouped format lacks."""
    return -matrix.shape[1] % matrix.group


def _widened(value: ov.Output, matrix: QuantizedMatrix) -> ov.Output:
    """A product's input (..., in), with zeros for what the matrix's last group lacks."""
    missing = _missing_columns(matrix)
    if not missing:
        return value
    rank = len(value.get_partial_shape())
    ends = ops.constant([0] * (rank - 1) + [missing], ov.Type.i64)
    return ops.pad(value, ops.constant([0] * rank, ov.Type.i64), ends, "constant").output(0)


def make_stateful(model: ov.Model, spec: StepSpec, tensors: InitialTensors, *, guarded: bool = False) -> None:
    """Turn the state's inputs and outputs into variables of the same names.

    OpenVINO's own pass does the same with other names, and knows no initial values but 0. With ``guarded`` what is
    written is selected from the new state and the old one by what is always so: OpenVINO keeps no variable that nobody
    reads, and of one that is an input as it is it keeps the input's memory.
    """
    is_first = next(p for p in model.get_parameters() if "is_first" in p.output(0).get_names())
    always = ops.greater(is_first, ops.constant(np.float32(-1.0)))
    # by their place, as in the ONNX graph: two outputs that are the same share their names
    parameters = dict(zip(spec.input_names, model.get_parameters(), strict=True))
    results = dict(zip(spec.output_names, model.get_results(), strict=True))
    for tensor in spec.states:
        parameter, result = parameters[tensor.name], results[next_name(tensor.name)]
        variable = _variable(tensor)
        # without an initial value a variable starts at 0, and the file holds no zeros
        initial = initial_values(tensor, tensors)
        read = ops.read_value(ops.constant(initial), variable) if initial.any() else ops.read_value(variable)
        read.set_friendly_name(tensor.name)
        parameter.output(0).replace(read.output(0))
        value = result.input_value(0)
        if guarded:
            value = _selected(always, value, read)
        assign = ops.assign(value.get_node(), variable)
        assign.input(0).replace_source_output(value)  # which of its node's outputs it is, the line above leaves open
        assign.set_friendly_name(next_name(tensor.name))
        model.remove_result(result)
        model.remove_parameter(parameter)
        model.add_sinks([assign])
    model.validate_nodes_and_infer_types()


def _selected(always: ov.Node, value: ov.Output, read: ov.Node) -> ov.Output:
    """The new state (rows, ...), as an operator that OpenVINO does not see through."""
    rank = len(value.get_partial_shape())
    shape = ops.constant(np.array([-1] + [1] * (rank - 1), np.int64))
    return ops.select(ops.reshape(always, shape, False), value, read).output(0)


def _variable(tensor: StateSpec) -> Variable:
    info = VariableInfo()
    info.variable_id = tensor.name
    info.data_type = ov.Type(np.dtype(tensor.dtype))
    info.data_shape = ov.PartialShape(list(tensor.shape))
    return Variable(info)


def name_nodes(model: ov.Model) -> None:
    """Name what has no name by its place, so that the same policy gives the same file.

    OpenVINO numbers nodes without a name through all models of a process (constants it folded keep the number), and
    notes with each what it was made of, by these names.
    """
    for place, node in enumerate(model.get_ordered_ops()):
        if NUMBERED.fullmatch(node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}/{place}")
        notes = node.get_rt_info()
        if MADE_OF in notes:
            del notes[MADE_OF]


def check_interface(model: ov.Model, spec: StepSpec) -> None:
    """Check names, shapes and types of a written model against the specification.

    Raises:
        LramError: naming what differs (our bug, which must not reach a robot).
    """
    for kind, ports, tensors in (("input", model.inputs, spec.inputs), ("output", model.outputs, spec.outputs)):
        actual = [(port.get_names(), tuple(port.shape), port.element_type.to_dtype().name) for port in ports]
        expected = [(t.name, t.shape, t.dtype) for t in tensors]
        if [(e[0] in a[0], *a[1:]) for a, e in zip(actual, expected, strict=True)] != [
            (True, *e[1:]) for e in expected
        ]:
            raise LramError(f"{MODEL_FILE}: the {kind}s are {actual}, the specification says {expected}")
    states = {v.info.variable_id: tuple(v.info.data_shape.to_shape()) for v in model.get_variables()}
    if states != {t.name: t.shape for t in spec.states}:
        raise LramError(f"{MODEL_FILE}: the variables are {states}, the specification says {spec.states}")
