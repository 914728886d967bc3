"""Runtime of the target `openvino`: a stateful model whose state OpenVINO keeps in variables of our names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from lram_export.bundle.artifact import LoadedArtifact
from lram_export.bundle.identity import compare
from lram_export.errors import BundleError, UsageError
from lram_export.runtimes.base import BaseRuntime
from lram_export.runtimes.protocol import Runtime, State, StepOutput
from lram_export.runtimes.stacked import in_parts
from lram_export.spec.rows import ANY, FREE_ROWS
from lram_export.spec.tensors import InitialTensors, StateSpec, StepSpec, initial_values
from lram_export.system.cache import CompileCache
from lram_export.system.machine import cpu_features

MODEL_FILE = "model.xml"
WEIGHTS_FILE = "model.bin"
DEVICE_VARIABLE = "LRAM_OPENVINO_DEVICE"


@dataclass(frozen=True)
class CompiledModel:
    """A compiled model, and the memory it reads its weights from if it came out of the cache."""

    model: Any
    memory: NDArray[np.uint8] | None


class OpenvinoRuntime(BaseRuntime):
    """The stateful step graph in one inference request; inputs and outputs are bound once."""

    def __init__(self, compiled: CompiledModel, spec: StepSpec, initial: InitialTensors) -> None:
        super().__init__(spec, initial)
        self._outputs = StepOutput.zeros(spec)
        self._request: Any = compiled.model.create_infer_request()
        # ports by their place: two outputs that are the same share their names
        ports = (*compiled.model.inputs, *compiled.model.outputs)
        for port, array in zip(ports, (*self._inputs.arrays, *self._outputs), strict=True):
            self._request.set_tensor(port, ov.Tensor(array, shared_memory=True))
        self._variables = {variable.name: variable for variable in self._request.query_state()}
        self._compiled: CompiledModel | None = compiled
        self.reset()  # before a first step OpenVINO shows zeros, whatever the initial values

    def _step(self) -> StepOutput:
        self._request.infer(share_outputs=True)
        return self._outputs

    def _save(self) -> State:
        return {tensor.name: self._read(tensor) for tensor in self.spec.states}

    def _load(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        for tensor in self.spec.states:
            self._write(tensor, state[tensor.name])

    def _restart(self, rows: list[int]) -> None:
        for tensor in self.spec.states:
            array = self._read(tensor)
            array[rows] = self._initial[tensor.name][rows]
            self._write(tensor, array)

    def _free(self) -> None:
        self._variables.clear()
        self._request = None
        self._compiled = None  # after the request, which still reads its memory

    def _read(self, tensor: StateSpec) -> NDArray[np.float32]:
        return np.array(self._variables[tensor.name].state.data, np.float32)

    def _write(self, tensor: StateSpec, array: NDArray[np.float32]) -> None:
        self._variables[tensor.name].state = ov.Tensor(np.ascontiguousarray(array))


def load(artifact: LoadedArtifact, threads: int, spin: bool = True) -> Runtime:
    """Compile the model for the chosen device, or take it from the cache.

    ``spin`` changes nothing: OpenVINO's threads sleep a millisecond or so after a step, and offer no choice.

    Raises:
        UsageError: the device that the environment asks for is not here.
        BundleError: OpenVINO does not accept the model.
    """
    core = ov.Core()
    device = chosen_device(core)
    path = artifact.file(MODEL_FILE)
    artifact.file(WEIGHTS_FILE)  # which the model refers to
    artifact.identity.check(path, properties(path))
    as_asked = artifact.spec.batch_size == artifact.exported_batch or has_free_rows(path)
    try:
        one = artifact if as_asked else artifact.as_exported()
        compiled = _compile(core, device, one, threads)
        check_interface(compiled.model, one.spec, path)

        def make(part: LoadedArtifact) -> OpenvinoRuntime:
            return OpenvinoRuntime(compiled, part.spec, part.initial)

        return make(artifact) if as_asked else in_parts(artifact, make)
    except RuntimeError as error:
        raise BundleError(f"{path}: OpenVINO cannot load it on {device}: {_reason(error)}") from None


def properties(path: Path) -> dict[str, str]:
    """What a model says about itself; from the text, since a model that comes out of the cache has it no more.

    Raises:
        BundleError: the file is no XML.
    """
    # where OpenVINO keeps the properties of the ONNX model it read
    return {entry.tag: entry.get("value", "") for entry in _rt_info(path).iterfind("framework/*")}


def has_free_rows(path: Path) -> bool:
    """Whether a model may be reshaped to another number of rows; raises BundleError as :func:`properties`."""
    said = _rt_info(path).find("/".join(FREE_ROWS))
    return said is not None and said.get("value") == ANY


def _rt_info(path: Path) -> ElementTree.Element:
    found = ElementTree.Element("rt_info")
    depth = 0
    try:
        for event, element in ElementTree.iterparse(path, ("start", "end")):
            depth += 1 if event == "start" else -1
            if event == "end" and depth == 1:  # a child of the root
                if element.tag == "rt_info":
                    found = element
                else:
                    element.clear()
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise BundleError(f"{path}: not what target openvino writes ({error}); export the bundle again") from None
    return found


def check_interface(model: Any, spec: StepSpec, path: Path) -> None:
    """Compare the inputs, outputs and variables of a compiled model with the manifest; raises BundleError."""
    for kind, ports, tensors in (("input", model.inputs, spec.inputs), ("output", model.outputs, spec.outputs)):
        names = [t.name for t in tensors]
        own = {
            _name(port, names[i] if i < len(names) else ""): [port.element_type.to_dtype().name, *port.shape]
            for i, port in enumerate(ports)
        }
        compare(path, kind, own, {t.name: [t.dtype, *t.shape] for t in tensors})
    variables = {v.name: list(v.state.data.shape) for v in model.create_infer_request().query_state()}
    compare(path, "variable", variables, {t.name: list(t.shape) for t in spec.states})


def _name(port: Any, expected: str) -> str:
    """The name that is expected, if it is one of a port's: what is the same in a model shares all its names."""
    return expected if expected in port.get_names() else str(port.any_name)


def chosen_device(core: ov.Core) -> str:
    """The device that the environment names, default `CPU`; raises UsageError if OpenVINO does not find it."""
    device = os.environ.get(DEVICE_VARIABLE) or "CPU"
    found = core.available_devices
    if device not in {*found, *(name.split(".")[0] for name in found)}:
        raise UsageError(f"{DEVICE_VARIABLE}: OpenVINO finds no device '{device}' here; it finds: {', '.join(found)}")
    return device


def _compile(core: ov.Core, device: str, artifact: LoadedArtifact, threads: int) -> CompiledModel:
    properties: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # where the processor has bfloat16, it would be the default
    }
    if device == "CPU":  # the default rounds what meets compressed weights to 8 bits
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
    identity = {
        "artifact": artifact.digest,
        "openvino": ov.__version__,
        "device": [device, core.get_property(device, "FULL_DEVICE_NAME"), *cpu_features()],
        "properties": properties,
    }
    resized = artifact.spec.batch_size != artifact.exported_batch
    if resized:
        identity["rows"] = artifact.spec.batch_size
    if device == "CPU":  # where it runs is no part of what is compiled
        # by itself it ties threads to cores of its choice, and unties the caller's from those that it was given
        properties = {**properties, "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    cache = CompileCache.of("openvino")
    known = cache.read(identity)
    if known is not None:
        with contextlib.suppress(RuntimeError):  # not accepted: compile
            return CompiledModel(core.import_model(ov.Tensor(known, shared_memory=True), device, properties), known)
    path = artifact.directory / MODEL_FILE
    model = _with_rows(core.read_model(path), artifact) if resized else path
    compiled = core.compile_model(model, device, properties)
    with contextlib.suppress(RuntimeError):  # not every device can export
        cache.write(identity, compiled.export_model().getbuffer())
    return CompiledModel(compiled, None)


def _with_rows(model: ov.Model, artifact: LoadedArtifact) -> ov.Model:
    """A model with another number of rows than it was written with.

    Not `Model.reshape`, which infers shapes in between, when some have the one number and some the other.
    """
    states = {tensor.name: tensor for tensor in artifact.spec.states}
    for parameter, tensor in zip(model.get_parameters(), artifact.spec.inputs, strict=False):
        parameter.set_partial_shape(ov.PartialShape(list(tensor.shape)))
    for variable in model.get_variables():
        info = variable.info
        if info.variable_id in states:
            info.data_shape = ov.PartialShape(list(states[info.variable_id].shape))
            variable.update(info)
    for node in model.get_ops():
        name = node.get_attributes()["variable_id"] if node.get_type_name() == "ReadValue" else ""
        if name in states and node.inputs():  # an initial value
            values = np.ascontiguousarray(initial_values(states[name], artifact.initial))
            node.input(0).replace_source_output(ov.op.Constant(values).output(0))
    model.validate_nodes_and_infer_types()
    return model


def _reason(error: RuntimeError) -> str:
    """The line of a message that says what is wrong; OpenVINO puts before it where it was noticed."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("Exception from")), "no reason given")
