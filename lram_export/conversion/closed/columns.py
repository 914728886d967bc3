"""One number per row as a column (rows, 1): servers count the sizes behind the rows, and want at least one."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx

from lram_export.conversion.closed.names import Ports, StatePort
from lram_export.conversion.closed.tape import PREFIX, Tape, rename
from lram_export.spec.tensors import TensorSpec


def as_columns(model: onnx.ModelProto, ports: Ports) -> Ports:
    """Let every input and output of the shape (rows,) be (rows, 1), in place; returns them as they are now."""
    graph = model.graph
    front, back = Tape("columns_in"), Tape("columns_out")
    for values, tape in ((graph.input, front), (graph.output, back)):
        for value in values:
            sizes = value.type.tensor_type.shape.dim
            if len(sizes) != 1:
                continue
            name, flat = value.name, f"{PREFIX}{value.name}.flat"
            rename(graph, {name: flat})
            value.name = name
            sizes.add().dim_value = 1
            if tape is front:
                tape.op("Reshape", name, tape.constant(np.array([-1], np.int64)), output=flat)
            else:
                tape.op("Reshape", flat, tape.constant(np.array([-1, 1], np.int64)), output=name)
    front.put_before(graph)
    back.put_behind(graph)
    return Ports(
        {name: _column(tensor) for name, tensor in ports.inputs.items()},
        {name: _column(tensor) for name, tensor in ports.actions.items()},
        tuple(StatePort(state.input, state.output, _two(state.shape)) for state in ports.states),
    )


def _column(tensor: TensorSpec) -> TensorSpec:
    return dataclasses.replace(tensor, shape=_two(tensor.shape))


def _two(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape, 1) if len(shape) == 1 else shape
