"""From the step graph to the closed step: what the step API keeps and computes around the graph goes into it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper

from lram_export.bundle.bundle import Bundle
from lram_export.conversion.closed.safety import hold_actions
from lram_export.conversion.closed.source import has_any_rows
from lram_export.conversion.closed.step import RETURN_TO_GO, REWARD, RUNNING, ClosedStep, closed_step
from lram_export.conversion.closed.tape import PREFIX, Tape, readers, rename
from lram_export.spec.rows import ROWS
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import TensorSpec, next_name

IS_FIRST = "is_first"
STARTS = f"{PREFIX}starts"
"""Whether a row starts an episode: a boolean, (rows,)."""
TOLD = f"{PREFIX}reward"
"""What the graph calls `reward`: scaled, (rows,)."""
FOUND_FIRST = f"{PREFIX}is_first"
"""What the graph calls `is_first` where that is an input of the closed step, too."""


def close(model: onnx.ModelProto, bundle: Bundle, reward_input: bool = False, start_input: bool = False) -> ClosedStep:
    """Close the step graph of a bundle, in place; returns what goes in and comes out now, for one row.

    Args:
        model: the graph, for one row or for any number of them, which it stays.
        bundle: whose it is.
        reward_input: whether the reward of the step before is an input.
        start_input: whether a step that has a state is also told that an episode starts, by an input `is_first` that
            is 0 within one; the last but the states.

    Raises:
        UsageError: see :func:`~lram_export.conversion.closed.step.closed_step`; or a safety that float32 cannot count.
    """
    graph = model.graph
    step = closed_step(bundle, reward_input, readers(graph, IS_FIRST) > 0)
    if bundle.manifest.spec.input(REWARD) is not None:
        rename(graph, {REWARD: TOLD})
    front, back = Tape("start"), Tape("end")
    rows = ROWS if has_any_rows(graph) else None
    controls = (TensorSpec(IS_FIRST, (1,), "float32"),) if start_input and step.states else ()
    if controls:
        rename(graph, {IS_FIRST: FOUND_FIRST})
    if step.states:
        _tell_starts(front, told=bool(controls))
    if bundle.manifest.task is not None:
        asked = {value.name for value in graph.input} & {"return_to_go", TOLD}
        _tell_return(front, bundle.manifest.task, asked, reward_input, step.observations[0].name if rows else None)
    held = hold_actions(back, bundle, STARTS)
    rename(graph, held)
    front.put_before(graph)
    back.put_behind(graph)
    del graph.value_info[:]  # runtimes infer it
    replace_ports(graph.input, (*step.inputs, *controls, *step.states), rows)
    replace_ports(graph.output, (*step.actions, *(_next(state) for state in step.states)), rows)
    return step


def _tell_starts(tape: Tape, told: bool) -> None:
    """``is_first`` from a state that is 1 within an episode. Whatever else it is, NaN and rubbish too, is a start.

    So is a step that is ``told`` so.

    The next is computed from the state: of a constant OpenVINO never updates the variable that it makes of it.
    """
    zero, one = tape.constant(np.zeros(1, np.float32)), tape.constant(np.ones(1, np.float32))
    runs = tape.op("Equal", RUNNING, one)
    if told:
        runs = tape.op("And", runs, tape.op("Equal", IS_FIRST, zero))
    running = tape.op("Where", runs, RUNNING, zero)
    tape.op("Not", runs, output=STARTS)
    tape.op("Sub", one, running, output=FOUND_FIRST if told else IS_FIRST)
    tape.op("Max", running, one, output=next_name(RUNNING))


def _tell_return(tape: Tape, task: TaskSpec, asked: set[str], reward_input: bool, rows_of: str | None) -> None:
    """What the graph asks to be told of returns and rewards, in float32 and in the order of the step API.

    ``rows_of`` is an input with as many rows as there are; None: there is one.
    """
    scale = np.float32(task.reward_scale)
    target = tape.constant(np.full(1, np.float32(task.target_return) / scale, np.float32))
    zero = tape.constant(np.zeros(1, np.float32))
    if rows_of is not None and asked:
        count = tape.op("Shape", rows_of, start=0, end=1)
        target, zero = (tape.op("Expand", value, count) for value in (target, zero))
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


def replace_ports(ports: Any, tensors: Iterable[TensorSpec], rows: str | None = None) -> None:
    """Let a graph's inputs or outputs be these, with the symbol ``rows`` for the first size, if there is one."""
    types = {"float32": onnx.TensorProto.FLOAT, "uint8": onnx.TensorProto.UINT8, "int64": onnx.TensorProto.INT64}
    del ports[:]
    for tensor in tensors:
        shape: list[str | int | None] = list(tensor.shape)
        if rows is not None:
            shape[0] = rows
        ports.append(helper.make_tensor_value_info(tensor.name, types[tensor.dtype], shape))
