"""Nodes for an ONNX graph, one after the other; and how values in a graph get other names. Needs onnx alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

PREFIX = "closed."
"""How the names of all values begin that the graph did not have."""


class Tape:
    """Collects nodes; their constants become initializers."""

    def __init__(self, part: str) -> None:
        """``part`` tells the names of one tape's values from those of another."""
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._prefix = f"{PREFIX}{part}."
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output, and return that one's name."""
        (name,) = self.ops(kind, *inputs, outputs=[output or self._new()], **attributes)
        return name

    def ops(self, kind: str, *inputs: str, outputs: list[str], **attributes: Any) -> list[str]:
        """Add a node, and return its outputs' names."""
        name = f"{self._prefix}{kind}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name=name, **attributes))
        return outputs

    def constant(self, values: NDArray[Any] | np.generic, name: str | None = None) -> str:
        """The name of an initializer with these values; equal ones without a name of their own share one."""
        array = np.ascontiguousarray(values).reshape(np.shape(values))
        key = (array.dtype.str, array.shape, array.tobytes())
        if name is None and key in self._constants:
            return self._constants[key]
        chosen = name or f"{self._prefix}constant.{len(self._constants)}"
        self.initializers.append(numpy_helper.from_array(array, chosen))
        if name is None:
            self._constants[key] = chosen
        return chosen

    def _new(self) -> str:
        return f"{self._prefix}{len(self.nodes)}"

    def put_before(self, graph: onnx.GraphProto) -> None:
        """Let a graph begin with the nodes."""
        rest = list(graph.node)
        del graph.node[:]
        graph.node.extend([*self.nodes, *rest])
        graph.initializer.extend(self.initializers)

    def put_behind(self, graph: onnx.GraphProto) -> None:
        """Let a graph end with the nodes."""
        graph.node.extend(self.nodes)
        graph.initializer.extend(self.initializers)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those of its branches, from the outside in."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """Everything in a graph and its branches that says of what shape a value is."""
    for part in graphs(graph):
        yield from (*part.input, *part.output, *part.value_info)


def readers(graph: onnx.GraphProto, name: str) -> int:
    """How many nodes read a value."""
    return sum(name in node.input for part in graphs(graph) for node in part.node)


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give values other names, wherever they are written; in place."""
    for part in graphs(graph):
        for node in part.node:
            for side in (node.input, node.output):
                side[:] = [names.get(name, name) for name in side]
        for tensor in part.initializer:
            tensor.name = names.get(tensor.name, tensor.name)
        for value in (*part.input, *part.output, *part.value_info):
            value.name = names.get(value.name, value.name)
