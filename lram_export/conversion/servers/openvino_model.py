"""The closed step as OpenVINO's own model, with or without its state inside, and how OpenVINO Model Server runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset15 as ops
from openvino.op.util import Variable, VariableInfo

from lram_export.bundle.bundle import Bundle
from lram_export.conversion.closed.file import write_closed
from lram_export.conversion.closed.names import Ports
from lram_export.conversion.closed.source import TARGET
from lram_export.conversion.formats import Arrays
from lram_export.errors import UsageError
from lram_export.system.files import scratch_directory

MODEL_FILE, WEIGHTS_FILE = "model.xml", "model.bin"
PROPERTIES = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",  # where the processor has bfloat16, it would be the default
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # the default rounds what meets compressed weights to 8 bits
}
"""With which the model computes what the policy does."""


def write_model(bundle: Bundle, folder: Path, reward_input: bool, stateful: bool) -> Ports:
    """Write `model.xml` and `model.bin`; ``stateful``: states become variables, which are 0 where an episode starts.

    Raises:
        UsageError: as :func:`~lram_export.conversion.closed.file.write_closed`; or OpenVINO does not read the graph.
    """
    with scratch_directory() as scratch:
        file = scratch / "closed.onnx"
        ports = write_closed(bundle, file, "state", reward_input)
        try:
            model = ov.Core().read_model(file)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()]
            said = next((line for line in lines if line and not line.startswith("Exception from")), "no reason given")
            raise UsageError(
                f"{bundle.path}: OpenVINO does not read its graph ({said}); export it at --precision fp32"
            ) from None
        if stateful and ports.states:
            keep_state(model, ports)
        model.set_friendly_name(bundle.manifest.name)
        ov.serialize(model, folder / MODEL_FILE, folder / WEIGHTS_FILE)
        del model  # it has mapped the weights of the file
    return ports


def keep_state(model: ov.Model, ports: Ports) -> None:
    """Make variables of the states, in place; they start at 0.

    OpenVINO's own pass does the same, but its variables start with a constant, and at `int8` the CPU plugin then fails.
    What is written is selected from the new state and the old one by what is always so: OpenVINO keeps no variable that
    nobody reads, and of one that is an input as it is it keeps the input's memory.
    """
    parameters = {name: parameter for parameter in model.get_parameters() for name in parameter.output(0).get_names()}
    results = model.get_results()[len(ports.actions) :]  # by their place: what is the same shares its names
    reads = []
    for state in ports.states:
        info = VariableInfo()
        info.variable_id, info.data_type, info.data_shape = state.input, ov.Type.f32, ov.PartialShape(list(state.shape))
        variable, parameter = Variable(info), parameters[state.input]
        reads.append((ops.read_value(variable), variable))
        parameter.output(0).replace(reads[-1][0].output(0))
        model.remove_parameter(parameter)
    running = reads[0][0]
    runs = ops.select(ops.equal(running, np.float32(1)), running, np.float32(0))  # not NaN
    always = ops.greater(runs, np.float32(-1))
    for (read, variable), result in zip(reads, results, strict=True):
        rank = len(read.output(0).get_partial_shape())
        condition = ops.reshape(always, np.array([-1] + [1] * (rank - 1), np.int64), False)
        model.add_sinks([ops.assign(ops.select(condition, result.input_value(0), read), variable)])
        model.remove_result(result)
    model.validate_nodes_and_infer_types()


class StatefulServer:
    """OpenVINO Model Server with a stateful model: one request for all sequences, whose states it keeps aside.

    As its sources have it up to 2026.2: at the start of a sequence the variables are reset, at any other step they are
    set to what was kept, and after every step they are kept.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self._request = _compiled(folder, threads).create_infer_request()
        self._kept: dict[int, dict[str, NDArray[Any]]] = {}

    def infer(self, sequence: int, given: Arrays, start: bool, initial: float | None = None) -> dict[str, NDArray[Any]]:
        """The outputs of a step; ``initial``: what is everywhere in the variables when a sequence starts, if they are
        not reset."""
        states = self._request.query_state()
        if start and initial is None:
            self._request.reset_state()
        for state in states:
            if start and initial is not None:
                state.state = ov.Tensor(np.full(state.state.shape, initial, np.float32))
            elif not start:
                state.state = ov.Tensor(self._kept[sequence][state.name])
        found = _infer(self._request, given)
        self._kept[sequence] = {state.name: np.array(state.state.data) for state in states}
        return found


class StatefulPlayer:
    """One robot beside another on the same server; see :class:`~lram_export.conversion.formats.Player`."""

    target = TARGET
    exact = False
    states: tuple[str, ...] = ()

    def __init__(self, folder: Path, ports: Ports, threads: int) -> None:
        self._server, self._ports = StatefulServer(folder, threads), ports
        self.inputs = tuple(tensor.name for tensor in ports.inputs.values())
        self.outputs = tuple(tensor.name for tensor in ports.actions.values())
        self._start = True
        self._initial: float | None = None
        self._before: Arrays | None = None

    def start(self, state: float | None = None) -> None:
        """See :class:`~lram_export.conversion.formats.Player`."""
        self._start, self._initial, self._before = True, state, None

    def step(self, given: Arrays) -> dict[str, NDArray[Any]]:
        """See :class:`~lram_export.conversion.formats.Player`."""
        self._server.infer(1, given if self._before is None else self._before, self._start)
        found = self._server.infer(2, given, self._start, self._initial)
        self._start, self._before = False, given
        return found


class StatelessPlayer:
    """One robot that hands its state back; see :class:`~lram_export.conversion.formats.Player`."""

    target = TARGET
    exact = False

    def __init__(self, folder: Path, ports: Ports, threads: int) -> None:
        self._request, self._ports = _compiled(folder, threads).create_infer_request(), ports
        self.inputs = tuple(tensor.name for tensor in ports.inputs.values())
        self.outputs = tuple(tensor.name for tensor in ports.actions.values())
        self.states = tuple(state.input for state in ports.states)
        self._state: dict[str, NDArray[Any]] = {}
        self.start()

    def start(self, state: float | None = None) -> None:
        """See :class:`~lram_export.conversion.formats.Player`."""
        self._state = {port.input: np.full(port.shape, state or 0.0, np.float32) for port in self._ports.states}

    def step(self, given: Arrays) -> dict[str, NDArray[Any]]:
        """See :class:`~lram_export.conversion.formats.Player`."""
        found = _infer(self._request, {**given, **self._state})
        self._state = {port.input: found[port.output] for port in self._ports.states}
        return {name: found[name] for name in self.outputs}


def _compiled(folder: Path, threads: int) -> Any:
    properties = {**PROPERTIES, "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    return ov.Core().compile_model(folder / MODEL_FILE, "CPU", properties)


def _infer(request: Any, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    found = request.infer({name: np.ascontiguousarray(values) for name, values in given.items()})
    return {name: np.array(values) for port, values in found.items() for name in port.get_names()}
