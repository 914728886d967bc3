"""How an ONNX step graph reads a state matrix: with one token of a step at a time, where the matrix is large.

ONNX Runtime first copies the second factor of a product into another order, unless the first one is a single row. A
state matrix is read once, so that the copy takes longer than the product. Token by token it is read once for each of
them instead, from the cache after the first time.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values
from onnx_ir.tape import Tape

from lram_export.spec.tensors import StepSpec

SMALLEST_WIDTH = 512
"""Of a state matrix that is read so; smaller ones are copied within the cache, which is faster."""


def query_token_by_token(model: ir.Model, spec: StepSpec) -> None:
    """Turn every product of a step's queries with a large state matrix into one product per token, in place.

    queries (rows, heads, tokens, width), as (rows, heads, tokens, 1, width), meet C as (rows, heads, 1, width, width).
    """
    matrices = {tensor.name for tensor in spec.states if tensor.role == "matrix" and tensor.shape[-2] >= SMALLEST_WIDTH}
    products = [node for node in model.graph if _reads_one_of(node, matrices)]
    if not products:
        return
    tape = Tape()
    of_tokens, of_columns = (
        tape.initializer(ir.tensor(np.array([axis], np.int64), name=f"query_axis_{axis}")) for axis in (2, 3)
    )
    for value in tape.initializers:
        model.graph.register_initializer(value)
    for product in products:
        tape = Tape()
        queries, memory = product.inputs
        rows = tape.op("Unsqueeze", [queries, of_columns])
        read = tape.op("MatMul", [rows, tape.op("Unsqueeze", [memory, of_tokens])])
        (found,) = product.outputs
        result = tape.op(
            "Squeeze", [read, of_columns], output=ir.Value(name=found.name, shape=found.shape, type=found.type)
        )
        replace_nodes_and_values(model.graph, product, [product], tape.nodes, [found], [result])


def _reads_one_of(node: ir.Node, matrices: set[str]) -> bool:
    memory = node.inputs[1] if node.op_type == "MatMul" else None
    return memory is not None and memory.name in matrices
