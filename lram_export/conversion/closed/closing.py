"""From the step graph to the closed step: what the step API keeps and computes around the graph goes into it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper

from lram_export.bundle.bundle import Bundle
from lram_export.conversion.closed.safety import hold_actions
from lram_export.conversion.closed.step import RETURN_TO_GO, REWARD, RUNNING, ClosedStep, closed_step
from lram_export.conversion.closed.tape import PREFIX, Tape, readers, rename
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import TensorSpec, next_name

IS_FIRST = "is_first"
STARTS = f"{PREFIX}starts"
"""Whether the row starts an episode: a boolean, (1,)."""
TOLD = f"{PREFIX}reward"
"""What the graph calls `reward`: scaled, (1,)."""


def close(model: onnx.ModelProto, bundle: Bundle, reward_input: bool = False) -> ClosedStep:
    """Close the step graph of a bundle for one row, in place; returns what goes in and comes out now.

    Raises:
        UsageError: see :func:`~lram_export.conversion.closed.step.closed_step`; or a safety that float32 cannot count.
    """
    graph = model.graph
    step = closed_step(bundle, reward_input, readers(graph, IS_FIRST) > 0)
    if bundle.manifest.spec.input(REWARD) is not None:
        rename(graph, {REWARD: TOLD})
    front, back = Tape("start"), Tape("end")
    if step.states:
        _tell_starts(front)
    if bundle.manifest.task is not None:
        given = {value.name for value in graph.input}
        _tell_return(front, bundle.manifest.task, given & {"return_to_go", TOLD}, reward_input)
    held = hold_actions(back, bundle, STARTS)
    rename(graph, held)
    front.put_before(graph)
    back.put_behind(graph)
    del graph.value_info[:]  # runtimes infer it
    replace_ports(graph.input, (*step.inputs, *step.states))
    replace_ports(graph.output, (*step.actions, *(_next(state) for state in step.states)))
    return step


def _tell_starts(tape: Tape) -> None:
    """``is_first`` from a state that is 1 within an episode. Whatever else it is, NaN and rubbish too, is a start.

    The next is computed from the state: of a constant OpenVINO never updates the variable that it makes of it.
    """
    zero, one = tape.constant(np.zeros(1, np.float32)), tape.constant(np.ones(1, np.float32))
    runs = tape.op("Equal", RUNNING, one)
    running = tape.op("Where", runs, RUNNING, zero)
    tape.op("Not", runs, output=STARTS)
    tape.op("Sub", one, running, output=IS_FIRST)
    tape.op("Max", running, one, output=next_name(RUNNING))


def _tell_return(tape: Tape, task: TaskSpec, asked: set[str], reward_input: bool) -> None:
    """What the graph asks to be told of returns and rewards, in float32 and in the order of the step API."""
    scale = np.float32(task.reward_scale)
    target = tape.constant(np.full(1, np.float32(task.target_return) / scale, np.float32))
    zero = tape.constant(np.zeros(1, np.float32))
    told = zero
    return_to_go = target
    if reward_input:
        scaled = tape.op("Div", REWARD, tape.constant(np.full(1, scale, np.float32)))
        told = tape.op("Where", STARTS, zero, scaled)
        before = tape.op("Where", STARTS, target, RETURN_TO_GO)
        return_to_go = tape.op("Sub", before, told, output=next_name(RETURN_TO_GO))
    if "return_to_go" in asked:
        tape.op("Identity", return_to_go, output="return_to_go")
    if TOLD in asked:
        tape.op("Identity", told if task.reward_feedback == "observed" else zero, output=TOLD)


def _next(state: TensorSpec) -> TensorSpec:
    return TensorSpec(next_name(state.name), state.shape, state.dtype)


def replace_ports(ports: Any, tensors: Iterable[TensorSpec]) -> None:
    """Let a graph's inputs or outputs be these."""
    types = {"float32": onnx.TensorProto.FLOAT, "uint8": onnx.TensorProto.UINT8, "int64": onnx.TensorProto.INT64}
    del ports[:]
    ports.extend(helper.make_tensor_value_info(t.name, types[t.dtype], list(t.shape)) for t in tensors)
