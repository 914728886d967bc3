"""What an ONNX step graph does only where an episode starts, as a branch: ONNX Runtime fuses no selections.

To forget the memory of a row the graph selects instead of multiplying by 0, since 0 times NaN is NaN. By itself that
is another pass over the largest part of the state at every step; as a branch it is one at the few steps that need it.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values
from onnx_ir.tape import Tape

from lram_export.exporters.onnx.codes import remove_unused
from lram_export.spec.tensors import StepSpec


def select_in_branches(model: ir.Model, spec: StepSpec) -> None:
    """Move every selection from a product with a state matrix into a branch, in place.

    ``Where(first, 0, Mul(decay, C))`` becomes ``If(any first, Where(first, 0, Mul(decay, C)), Mul(decay, C))``.
    """
    matrices = {tensor.name for tensor in spec.states if tensor.role == "matrix"}
    selections = [(node, product) for node in model.graph if (product := _selected_product(node, matrices)) is not None]
    if not selections:
        return
    starting = _any_starts(model.graph)
    for selection, product in selections:
        tape = Tape()
        (scaled,) = selection.outputs
        result = tape.op(
            "If",
            [starting],
            attributes={
                "then_branch": _branch("row_starts", product, selection),
                "else_branch": _branch("no_row_starts", product, None),
            },
            output=ir.Value(name=scaled.name, shape=scaled.shape, type=scaled.type),
        )
        replace_nodes_and_values(model.graph, selection, [selection], tape.nodes, [scaled], [result])
    remove_unused(model)


def _selected_product(node: ir.Node, matrices: set[str]) -> ir.Node | None:
    """The product with a state matrix that a node selects from, if it does."""
    if node.op_type != "Where" or node.inputs[2] is None:
        return None
    product = node.inputs[2].producer()
    if product is None or product.op_type != "Mul":
        return None
    return product if any(value is not None and value.name in matrices for value in product.inputs) else None


def _any_starts(graph: ir.Graph) -> ir.Value:
    """Whether any row starts an episode, a scalar, as the graph's first nodes."""
    (is_first,) = (value for value in graph.inputs if value.name == "is_first")
    tape = Tape()
    largest = tape.op("ReduceMax", [is_first], attributes={"keepdims": 0})
    zero = tape.initializer(ir.tensor(0.0, dtype=ir.DataType.FLOAT, name="nothing_starts"))
    starting = tape.op("Greater", [largest, zero])
    graph.register_initializer(zero)
    graph.insert_before(graph[0], tape.nodes)
    return starting


def _branch(name: str, product: ir.Node, selection: ir.Node | None) -> ir.Graph:
    """The product, and the selection from it, as a graph of its own that reads the values around it."""
    tape, original = Tape(), product.outputs[0]

    def value(kind: str) -> ir.Value:
        return ir.Value(name=f"{original.name}.{name}.{kind}", shape=original.shape, type=original.type)

    result = tape.op("Mul", product.inputs, output=value("scaled"))
    if selection is not None:
        result = tape.op("Where", [*selection.inputs[:2], result], output=value("selected"))
    return ir.Graph([], [result], nodes=tape.nodes, name=name)
