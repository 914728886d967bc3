"""The step graph as an ONNX model: standard operators, any number of rows, the design's names."""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from lram_export.errors import LramError
from lram_export.exporters.onnx.optimize import optimize
from lram_export.exporters.onnx.rows import free_rows, telling_rows
from lram_export.lowering import LoweredPolicy
from lram_export.model.graph import Graph
from lram_export.spec.rows import ROWS
from lram_export.spec.tensors import StepSpec, TensorSpec
from lram_export.step_module.tracing import without_values

if TYPE_CHECKING:
    import onnx
    import onnx_ir

OPSET = 18
"""The exporter's native opset: nothing is converted, and every runtime of the last years reads it."""

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
SMALL_BYTES = 256
"""Initializers up to this size are part of the graph's own file."""


_translated: WeakKeyDictionary[torch.nn.Module, onnx_ir.Model] = WeakKeyDictionary()


def build_onnx(policy: LoweredPolicy) -> onnx_ir.Model:
    """The step graph as ONNX, for the caller to change; weights stay shared with torch.

    It is for any number of rows (see :mod:`~lram_export.exporters.onnx.rows`), or for as many as the policy is lowered
    for, where a module of one's own writes their number into its graph. Several targets start from it and translating
    takes seconds, so a graph is translated once.
    """
    if policy.graph not in _translated:
        _translated[policy.graph] = _translate(policy)
    model = _translated[policy.graph].clone()
    model.metadata_props.update(policy.metadata())
    return model


def _translate(policy: LoweredPolicy) -> onnx_ir.Model:
    try:
        rows = telling_rows(policy.graph)
        model = _traced(policy, rows)
        free_rows(model, rows)
        return model
    except Exception as error:  # torch raises whatever it likes; if that was not the rows' fault it will again
        logging.getLogger(__name__).info("%s: for %d rows only: %s", policy.name, policy.spec.batch_size, error)
        return _traced(policy, policy.spec.batch_size)


def _traced(policy: LoweredPolicy, rows: int) -> onnx_ir.Model:
    spec = policy.spec.with_batch(rows)
    # nobody looks at their values, and the states of many rows may be large
    arguments = tuple(torch.empty(t.shape, dtype=getattr(torch, t.dtype)) for t in (*spec.inputs, *spec.states))
    # Both speak about packages this model does not use and about torch's own internals.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), without_values():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(  # torch.export and ONNX Script
            policy.graph,
            arguments,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(spec.input_names),
            output_names=list(spec.output_names),
            external_data=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    model = program.model
    optimize(model)
    name_interface(model.graph, spec)
    model.metadata_props.clear()
    model.producer_name = "lram-export"
    _name_products(model.graph, policy.graph)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces: they tell about the exporting machine, not the model
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    return model


def name_interface(graph: onnx_ir.Graph, spec: StepSpec) -> None:
    """Give inputs and outputs the names of the specification, and no value inside one of them.

    Where an output is an input, or the same as another, torch and the passes name one of them as they like.
    """
    ends = [*graph.inputs, *graph.outputs]
    names = [*spec.input_names, *spec.output_names]
    inside = [value for node in graph.all_nodes() for value in node.outputs if value not in ends]
    for value in (*inside, *graph.initializers.values()):
        if value.name in names:
            value.name = f"{value.name}.inside"
    for i, value in enumerate(ends):
        value.name = f"{i}.end"  # first apart from each other: they may have changed places
    for value, name in zip(ends, names, strict=True):
        value.name = name


NAME_SCOPES = "pkg.torch.onnx.name_scopes"
"""What torch says of a node: the modules it was traced in, from the outermost, and its name in the traced graph."""


def _name_products(graph: onnx_ir.Graph, module: Graph) -> None:
    """Name the product of a linear layer after the layer: values cannot tell, two layers may hold the same ones.

    Weights lose their names where they are transposed at translation, the products keep where they come from. A layer
    that is used several times stays float32, and its products keep their names: no two nodes may have the same.
    """
    layers = {id(layer): name for name, layer in module.layers().items()}
    linear = {path: layers[id(part)] for path, part in module.named_modules() if id(part) in layers}
    products: dict[str, list[onnx_ir.Node]] = {}
    for node in graph:
        scopes: list[str] = ast.literal_eval(node.metadata_props.get(NAME_SCOPES, "[]"))
        if node.op_type in ("MatMul", "Gemm") and len(scopes) > 1 and scopes[-2] in linear:
            products.setdefault(linear[scopes[-2]], []).append(node)
    for name, nodes in products.items():
        if len(nodes) == 1:
            nodes[0].name = name


def save_onnx(
    model: onnx_ir.Model, directory: Path, spec: StepSpec, *, domains: Sequence[str] = ()
) -> tuple[Path, Path]:
    """Write graph and external weights, then check the written file.

    Args:
        model: the step graph; tensors that already lie in a file of the folder stay there.
        directory: where to write.
        spec: what the model has to be.
        domains: domains of operators beyond the ONNX standard.

    Raises:
        LramError: the model is not valid ONNX, or not what ``spec`` promises (both would be our bug, and
            must not reach a robot).
    """
    import onnx
    import onnx_ir

    path = directory / MODEL_FILE
    values = [v for v in model.graph.initializers.values() if _goes_to_file(v)]
    tensors = onnx_ir.external_data.convert_tensors_to_external(
        [v.const_value for v in values if v.const_value is not None], directory, WEIGHTS_FILE
    )
    for value, tensor in zip(values, tensors, strict=True):
        value.const_value = tensor
    onnx_ir.save(model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise LramError(f"{path.name}: the exported graph is not valid ONNX: {error}") from None
    check_interface(onnx.load(str(path), load_external_data=False), spec, domains)
    return path, directory / WEIGHTS_FILE


def _goes_to_file(value: onnx_ir.Value) -> bool:
    """Whether an initializer is a weight that is not in a file yet; small ones, such as shapes, stay in the graph."""
    import onnx_ir

    tensor = value.const_value
    return tensor is not None and not isinstance(tensor, onnx_ir.ExternalTensor) and tensor.nbytes > SMALL_BYTES


def check_interface(model: onnx.ModelProto, spec: StepSpec, domains: Sequence[str] = ()) -> None:
    """Check operator domains, names, shapes and dtypes of a loaded model against the specification.

    Raises:
        LramError: naming what differs.
    """
    import onnx

    foreign = {n.domain for n in model.graph.node} - {"", "ai.onnx", *domains}
    if foreign:
        raise LramError(f"{MODEL_FILE}: operators outside the ONNX standard: {', '.join(sorted(foreign))}")

    graph = model.graph
    rows = ROWS if graph.input[0].type.tensor_type.shape.dim[0].dim_param else spec.batch_size

    def interface(values: Iterable[onnx.ValueInfoProto]) -> list[tuple[str, list[int | str], str]]:
        described = []
        for value in values:
            tensor = value.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
            described.append((value.name, [d.dim_param or d.dim_value for d in tensor.shape.dim], dtype))
        return described

    def expected(names: Sequence[str], tensors: Sequence[TensorSpec]) -> list[tuple[str, list[int | str], str]]:
        return [(name, [rows, *t.shape[1:]], t.dtype) for name, t in zip(names, tensors, strict=True)]

    for actual, promised in (
        (interface(graph.input), expected(spec.input_names, (*spec.inputs, *spec.states))),
        (interface(graph.output), expected(spec.output_names, (*spec.outputs, *spec.states))),
    ):
        for got, want in zip(actual, promised, strict=True):
            if got != want:
                raise LramError(f"{MODEL_FILE}: the graph has {got}, the specification says {want}")
