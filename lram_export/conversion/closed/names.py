"""How the inputs and outputs of a closed step are called: one name for each state, or all states in one tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from lram_export.conversion.closed.closing import replace_ports
from lram_export.conversion.closed.step import ClosedStep
from lram_export.conversion.closed.tape import Tape, rename
from lram_export.errors import UsageError
from lram_export.spec.tensors import TensorSpec, next_name


@dataclass(frozen=True)
class StatePort:
    """A state as users see it: what comes out under one name goes in again under another."""

    input: str
    output: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Ports:
    """A closed step as users see it.

    Attributes:
        inputs: what the robot observes, and the reward if it is asked for: our name -> tensor as it is called here.
        actions: likewise.
        states: what is handed back.
    """

    inputs: dict[str, TensorSpec]
    actions: dict[str, TensorSpec]
    states: tuple[StatePort, ...]


def name_ports(model: onnx.ModelProto, step: ClosedStep, scheme: str) -> Ports:
    """Call what goes in and comes out by a scheme of :data:`~lram_export.conversion.formats.NAMES`, in place.

    Raises:
        UsageError: the policy has not what the scheme has names for.
    """
    if scheme == "packed":
        return _packed(model, step)
    pairs = {state.name: (state.name, next_name(state.name)) for state in step.states}
    if scheme == "memory":
        for name in pairs:
            part = name.removeprefix("state.")
            pairs[name] = (f"memory.{part}.in", f"memory.{part}.out")
    rename(model.graph, {name: pair[0] for name, pair in pairs.items()})
    rename(model.graph, {next_name(name): pair[1] for name, pair in pairs.items()})
    return Ports(
        {tensor.name: tensor for tensor in step.inputs},
        {tensor.name: tensor for tensor in step.actions},
        tuple(StatePort(*pairs[state.name], state.shape) for state in step.states),
    )


def _packed(model: onnx.ModelProto, step: ClosedStep) -> Ports:
    observation = _only_vector("observation", [*step.inputs])
    action = _only_vector("action", [*step.actions])
    graph = model.graph
    rename(graph, {observation.name: "obs", action.name: "actions"})
    inputs, outputs = (
        [TensorSpec("obs", observation.shape, "float32")],
        [TensorSpec("actions", action.shape, "float32")],
    )
    states: tuple[StatePort, ...] = ()
    if step.states:
        sizes = [math.prod(state.shape) for state in step.states]
        shape = (1, 1, sum(sizes))
        states = (StatePort("h_in", "h_out", shape),)
        inputs.append(TensorSpec("h_in", shape, "float32"))
        outputs.append(TensorSpec("h_out", shape, "float32"))
        _unpack(step.states, sizes).put_before(graph)
        _pack(step.states, sizes).put_behind(graph)
    replace_ports(graph.input, inputs)
    replace_ports(graph.output, outputs)
    return Ports({observation.name: inputs[0]}, {action.name: outputs[0]}, states)


def _only_vector(what: str, tensors: Sequence[TensorSpec]) -> TensorSpec:
    """The one vector of float32 that this is."""
    vectors = [t for t in tensors if t.dtype == "float32" and len(t.shape) == 2]
    if len(tensors) != 1 or not vectors:
        found = ", ".join(f"{t.name} ({t.dtype} of shape {t.shape[1:]})" for t in tensors)
        raise UsageError(
            f"--names packed: takes one {what}, a vector of float32, and this policy has {found}; leave out --names, "
            f"or say --names memory"
        )
    return vectors[0]


def _unpack(states: Sequence[TensorSpec], sizes: list[int]) -> Tape:
    tape = Tape("unpack")
    parts = ["h_in"]
    if len(states) > 1:
        lengths = tape.constant(np.array(sizes, np.int64))
        parts = tape.ops("Split", "h_in", lengths, outputs=[f"{state.name}.packed" for state in states], axis=2)
    for part, state in zip(parts, states, strict=True):
        tape.op("Reshape", part, tape.constant(np.array(state.shape, np.int64)), output=state.name)
    return tape


def _pack(states: Sequence[TensorSpec], sizes: list[int]) -> Tape:
    tape = Tape("pack")
    flat = [
        tape.op("Reshape", next_name(state.name), tape.constant(np.array([1, 1, size], np.int64)))
        for state, size in zip(states, sizes, strict=True)
    ]
    tape.op("Concat", *flat, output="h_out", axis=2)
    return tape
