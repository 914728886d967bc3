"""What runtimes of the last years need of a graph that today's does not.

ONNX Runtime 1.16 to 1.18

- abort the process, in a fusion that they try by default, at a LayerNormalization without a bias;
- let go of the memory of a value that nobody reads while others are in the same memory, from the second run on, and so
  compute with whatever is there then, without a word: every node has to be read;
- and add no 16-bit integers, which is how codes of `int8` are moved to unsigned ones when a model is loaded;
- and the first two know no later version of the file format than 9.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from lram_export.conversion.closed.tape import PREFIX, graphs

IR_VERSION = 8


def suit_older_runtimes(model: onnx.ModelProto) -> None:
    """Write a graph as older runtimes read it, in place; it computes the same."""
    model.ir_version = IR_VERSION
    _drop_unread(model.graph)
    _widen_integers(model.graph)
    parts = list(graphs(model.graph))
    shapes = {tensor.name: tuple(tensor.dims) for part in parts for tensor in part.initializer}
    biases: dict[tuple[int, ...], str] = {}
    for part in parts:
        for node in part.node:
            if node.op_type == "LayerNormalization" and len(node.input) == 2:
                shape = shapes[node.input[1]]
                node.input.append(biases.setdefault(shape, f"{PREFIX}no_bias.{len(biases)}"))
            node.ClearField("metadata_props")
        part.ClearField("metadata_props")
        for value in (*part.input, *part.output, *part.value_info):
            value.ClearField("metadata_props")
        for tensor in part.initializer:
            tensor.ClearField("metadata_props")
    for shape, name in biases.items():
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), name))


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Leave out the nodes that no output comes from, and the constants that only they read."""
    read = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):  # a node comes before those that read it
        if read.intersection(node.output):
            kept.append(node)
            read.update(node.input)
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    read.update(name for part in graphs(attribute.g) for inner in part.node for name in inner.input)
                    read.update(output.name for output in attribute.g.output)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for place in reversed(range(len(graph.initializer))):  # one by one: the others are not copied
        if graph.initializer[place].name not in read:
            del graph.initializer[place]


def _widen_integers(graph: onnx.GraphProto) -> None:
    """Move codes of `int8` to unsigned ones (see :mod:`lram_export.exporters.onnx.products`) with 32 bits, not 16."""
    narrow = onnx.TensorProto.INT16
    shifts = {t.name: t for t in graph.initializer if t.data_type == narrow and t.name.endswith(".shift")}
    shifted = {node.input[0] for node in graph.node if node.op_type == "Add" and node.input[1] in shifts}
    for node in graph.node:
        if node.op_type == "Cast" and node.output[0] in shifted:
            node.attribute[0].i = onnx.TensorProto.INT32
    for name, tensor in shifts.items():
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.int32), name))
