"""Any number of rows: the number that a graph was traced with becomes a symbol in it.

A graph is traced with a number of rows that no size in it is a multiple of (:func:`telling_rows`), so wherever one is
written, rows are meant. Few nodes have it written out: a Reshape takes what is left (-1) in its place, an Expand and a
constant with rows the number that the input `is_first` has. Nothing else changes, so a runtime that is told the number
has the graph that it would have, had it been traced with it.

This is right because rows do not depend on each other, and because it is checked: with another number of rows every
value has to have the shape that it had (:func:`_check`). Torch's own symbolic shapes would make tracing take twice as
long, and leave arithmetic on shapes in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.tape import Tape

from lram_export.exporters.onnx.codes import remove_unused
from lram_export.model.graph import Graph
from lram_export.spec.rows import ROWS
from lram_export.spec.tensors import MOST_DIMENSIONS

PRIMES = (41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113)
"""Larger than what a step multiplies sizes by or adds to them: tokens, taps, gates."""
ANOTHER = 2
"""The number of rows with which shapes are checked."""
SHAPE_INPUTS = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}
"""Operators that are told a shape -> which of their inputs it is."""
TO_THE_END = 1 << 31
"""From here on a whole number is no size."""
MOST_SIZES = 2 * MOST_DIMENSIONS
"""What a constant of sizes has at most: a Pad two for each dimension."""
BIG_BYTES = 1024
"""Of larger constants the shape is enough to infer others."""

Shape = tuple[int, ...]


class FixedRowsError(Exception):
    """Why a graph cannot be had for any number of rows."""


def telling_rows(graph: Graph) -> int:
    """A number of rows that no size of a step's tensors and weights is a multiple of; raises FixedRowsError."""
    spec = graph.spec
    shapes = [tensor.shape for tensor in graph.state_dict().values()]
    shapes += [tensor.shape[1:] for tensor in (*spec.inputs, *spec.outputs, *spec.states)]
    sizes = {size for shape in shapes for size in shape if size}
    for rows in PRIMES:
        if all(size % rows for size in sizes):
            return rows
    raise FixedRowsError("every number of rows divides a size")


def free_rows(model: ir.Model, rows: int) -> None:
    """Make the number of rows that a step graph was traced with a symbol, in place.

    Raises:
        FixedRowsError: it is written where it cannot be replaced; the model is half changed then.
    """
    if any(node.graph is not model.graph for node in model.graph.all_nodes()):
        raise FixedRowsError("there are branches or loops")
    traced = _inferred(model, rows)
    for name, shape in traced.items():
        if shape is None:
            raise FixedRowsError(f"{name}: of no known shape")
    _Freeing(model, rows).run()
    _check(traced, _inferred(model, ANOTHER), rows)
    for value in (*model.graph.inputs, *(output for node in model.graph for output in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([_symbol(size, rows) for size in value.shape])


def _symbol(size: int | ir.SymbolicDim, rows: int) -> int | str | None:
    """A size with the symbol in place of the rows; None for a multiple of them, which runtimes infer."""
    if not isinstance(size, int):
        return size.value
    if size == 0 or size % rows:
        return size
    return ROWS if size == rows else None


class _Freeing:
    """What becomes of one graph."""

    def __init__(self, model: ir.Model, rows: int) -> None:
        self.model, self.graph, self.rows = model, model.graph, rows
        self._count: ir.Value | None = None
        self._shapes: dict[Shape, ir.Value] = {}

    def run(self) -> None:
        """Replace what can be, raise FixedRowsError where something is left."""
        nodes = list(self.graph)
        for value in list(self.graph.initializers.values()):
            if self._places(_shape(value)):
                self._free_constant(value)
        for node in nodes:
            place = SHAPE_INPUTS.get(node.op_type, len(node.inputs))
            told = node.inputs[place] if place < len(node.inputs) else None
            if told is not None and self._places(_few_numbers(told.const_value)):
                self._free_shape(node, place, _few_numbers(told.const_value))
        remove_unused(self.model)
        for node in self.graph:
            for attribute in node.attributes.values():
                if self._places(_attribute_numbers(attribute)):
                    raise FixedRowsError(f"{node.name}: {attribute.name} depends on the rows")
        for value in self.graph.initializers.values():
            if self._places(_few_numbers(value.const_value)):
                raise FixedRowsError(f"{value.name}: a number that depends on the rows")

    def _places(self, numbers: Sequence[int]) -> list[int]:
        """Where multiples of the rows are written."""
        return [i for i, n in enumerate(numbers) if n and n % self.rows == 0 and abs(n) < TO_THE_END]

    def _only_place(self, name: str | None, numbers: Sequence[int]) -> int:
        places = self._places(numbers)
        if len(places) != 1:
            raise FixedRowsError(f"{name}: rows in {len(places)} dimensions")
        return places[0]

    def _free_shape(self, node: ir.Node, place: int, numbers: Shape) -> None:
        """Let a node that is told a shape find its rows."""
        at = self._only_place(node.name, numbers)
        if node.op_type == "Reshape" and -1 not in numbers:
            shape = self._constant((*numbers[:at], -1, *numbers[at + 1 :]))
        elif node.op_type == "Expand" and self._has_rows(node.inputs[0], at - len(numbers)):
            shape = self._constant((*numbers[:at], 1, *numbers[at + 1 :]))
        else:
            shape = self._with_rows(node, numbers, at)
        node.replace_input_with(place, shape)

    def _has_rows(self, value: ir.Value | None, from_end: int) -> bool:
        shape = () if value is None else _shape(value)
        return len(shape) >= -from_end and shape[from_end] == self.rows

    def _free_constant(self, value: ir.Value) -> None:
        """Keep one row of a constant whose rows are the same, and expand it."""
        shape, tensor = _shape(value), value.const_value
        at = self._only_place(value.name, shape)
        assert tensor is not None
        values = np.ascontiguousarray(tensor.numpy())
        row = np.ascontiguousarray(values.take([0], axis=at))
        if values.tobytes() != np.ascontiguousarray(np.broadcast_to(row, shape)).tobytes():
            raise FixedRowsError(f"{value.name}: a constant whose rows differ")
        if value.is_graph_output():
            raise FixedRowsError(f"{value.name}: a constant output")
        users = list(value.uses())
        first = next(node for node in self.graph if any(node is user for user, _ in users))
        tape, kept = Tape(), _initializer(self.graph, f"{value.name}.row", row)
        expanded = tape.op("Expand", [kept, self._with_rows(first, shape, at)], output=_named(f"{value.name}.rows"))
        expanded.type = value.type
        self.graph.insert_before(first, tape.nodes)
        for node, place in users:
            node.replace_input_with(place, expanded)

    def _with_rows(self, before: ir.Node, numbers: Shape, at: int) -> ir.Value:
        """A shape whose rows are counted."""
        if numbers[at] != self.rows:
            raise FixedRowsError(f"{before.name}: a multiple of the rows")
        if self._count is None:
            (is_first,) = (value for value in self.graph.inputs if value.name == "is_first")
            tape = Tape()
            self._count = tape.op("Shape", [is_first], output=_named("rows.count"))
            self.graph.insert_before(self.graph[0], tape.nodes)
        parts = [self._constant(part) for part in (numbers[:at], numbers[at + 1 :]) if part]
        if not parts:
            return self._count
        parts.insert(min(at, 1), self._count)
        tape = Tape()
        shape = tape.op("Concat", parts, {"axis": 0})
        self.graph.insert_before(before, tape.nodes)
        return shape

    def _constant(self, numbers: Shape) -> ir.Value:
        if numbers not in self._shapes:
            name = f"rows.shape.{len(self._shapes)}"
            self._shapes[numbers] = _initializer(self.graph, name, np.array(numbers, np.int64))
        return self._shapes[numbers]


def _initializer(graph: ir.Graph, name: str, values: np.ndarray) -> ir.Value:
    tensor = ir.tensor(values, name=name)
    value = ir.Value(name=name, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _named(name: str) -> ir.Value:
    return ir.Value(name=name)


def _shape(value: ir.Value) -> Shape:
    """The sizes of a value, 0 where there is a symbol."""
    shape = value.shape if value.const_value is None else value.const_value.shape
    return () if shape is None else tuple(size if isinstance(size, int) else 0 for size in shape)


def _few_numbers(tensor: ir.TensorProtocol | None) -> Shape:
    """The whole numbers of a constant that has as few as shapes have; () for any other."""
    whole = tensor is not None and tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32)
    return tuple(map(int, tensor.numpy().flat)) if tensor is not None and whole and tensor.size <= MOST_SIZES else ()


def _attribute_numbers(attribute: ir.Attr) -> Shape:
    if attribute.type == ir.AttributeType.INT:
        return (attribute.as_int(),)
    if attribute.type == ir.AttributeType.INTS:
        return tuple(attribute.as_ints())
    return _few_numbers(attribute.as_tensor()) if attribute.type == ir.AttributeType.TENSOR else ()


def _inferred(model: ir.Model, rows: int) -> dict[str, Shape | None]:
    """The shape of every value inside of a graph, as ONNX infers it from a number of rows; None: it does not.

    Raises:
        FixedRowsError: shapes contradict each other.
    """
    light = model.clone()
    for value in light.graph.inputs:
        assert value.shape is not None
        value.shape = ir.Shape([rows, *value.shape[1:]])
    for value in list(light.graph.initializers.values()):
        assert value.const_value is not None and value.name is not None
        if value.const_value.nbytes > BIG_BYTES:
            del light.graph.initializers[value.name]
            value.shape, value.const_value = ir.Shape(_shape(value)), None
            light.graph.inputs.append(value)
    inside = [output for node in light.graph for output in node.outputs]
    for value in inside:
        value.shape = None
    try:
        proto = onnx.shape_inference.infer_shapes(ir.to_proto(light), strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise FixedRowsError(" ".join(str(error).split())) from None
    known = {info.name: _known_shape(info.type.tensor_type) for info in (*proto.graph.value_info, *proto.graph.output)}
    return {value.name: known.get(value.name) for value in inside if value.name is not None}


def _known_shape(tensor: onnx.TypeProto.Tensor) -> Shape | None:
    sizes = tensor.shape.dim
    known = tensor.HasField("shape") and all(size.HasField("dim_value") for size in sizes)
    return tuple(size.dim_value for size in sizes) if known else None


def _check(traced: Mapping[str, Shape | None], found: Mapping[str, Shape | None], rows: int) -> None:
    """Raise FixedRowsError unless every shape is what it was, with another number of rows."""
    for name, shape in traced.items():
        if shape is None or name not in found:
            continue  # it is not there any more
        expected = tuple(size if size % rows else size // rows * ANOTHER for size in shape)
        if found[name] != expected:
            raise FixedRowsError(f"{name}: of shape {found[name]} with {ANOTHER} rows, expected {expected}")
