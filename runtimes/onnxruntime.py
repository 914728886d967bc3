"""Runtime of the target `onnxruntime`: two sets of bound state buffers that swap, no copy of the state per step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lram_export.bundle.artifact import LoadedArtifact
from lram_export.bundle.identity import compare
from lram_export.errors import BundleError
from lram_export.runtimes.base import BaseRuntime
from lram_export.runtimes.protocol import Runtime, State, StepOutput
from lram_export.runtimes.stacked import in_parts
from lram_export.spec.rows import ROWS
from lram_export.spec.tensors import InitialTensors, StepSpec, next_name

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
STOP_SPINNING = "session.force_spinning_stop"
"""At the end of a step, not within one. Left alone, idle threads spin on for tens of milliseconds or longer."""


class OnnxRuntime(BaseRuntime):
    """The step graph in an ONNX Runtime session on the CPU."""

    in_place = False

    def __init__(self, session: Any, spec: StepSpec, initial: InitialTensors) -> None:
        super().__init__(spec, initial)
        self._session = session
        self._outputs = StepOutput.zeros(spec)
        # Even steps read set 0 and write set 1, odd steps the other way round.
        self._states = tuple({name: value.copy() for name, value in self._initial.items()} for _ in range(2))
        self._current = 0
        self._bindings = [self._bind(self._states[i], self._states[1 - i]) for i in range(2)]

    def _bind(self, source: State, destination: State) -> Any:
        binding = self._session.io_binding()

        def arguments(name: str, array: NDArray[np.generic]) -> tuple[Any, ...]:
            return (name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

        for tensor, array in zip(self.spec.inputs, self._inputs.arrays, strict=True):
            binding.bind_input(*arguments(tensor.name, array))
        for output, result in zip(self.spec.outputs, self._outputs, strict=True):
            binding.bind_output(*arguments(output.name, result))
        for name in source:
            binding.bind_input(*arguments(name, source[name]))
            binding.bind_output(*arguments(next_name(name), destination[name]))
        return binding

    def _step(self) -> StepOutput:
        self._session.run_with_iobinding(self._bindings[self._current])
        return self._outputs

    def _commit(self) -> None:
        self._current = 1 - self._current

    def _save(self) -> State:
        return {name: array.copy() for name, array in self._states[self._current].items()}

    def _load(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        for name, array in self._states[self._current].items():
            np.copyto(array, state[name])

    def _restart(self, rows: list[int]) -> None:
        for name, array in self._states[self._current].items():
            array[rows] = self._initial[name][rows]

    def _free(self) -> None:
        self._bindings.clear()
        self._session = None


def session_options(threads: int, rows: int, spin: bool = True) -> Any:
    """Options under which two loads give the same bits: nothing is tuned at run time, sums have one order.

    A graph for any number of rows is prepared for this one, as if it had been exported for it.
    """
    options = onnxruntime.SessionOptions()
    options.add_free_dimension_override_by_name(ROWS, rows)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry(STOP_SPINNING, "0" if spin else "1")
    return options


def load(artifact: LoadedArtifact, threads: int, spin: bool = True) -> Runtime:
    """Create a session; raises BundleError when ONNX Runtime does not accept the model."""
    path, weights = artifact.file(MODEL_FILE), artifact.file(WEIGHTS_FILE)
    files = ModelFiles(path, (weights,) if artifact.quantized is None else (weights, artifact.quantized.path))
    options = session_options(threads, artifact.spec.batch_size, spin)
    try:
        try:
            session = files.session(options)
        except Exception:
            # the releases that refuse links out of the folder can be given their content
            if not files.are_links or not hasattr(options, IN_MEMORY):
                raise
            session = files.session_in_memory(options)
    except Exception as error:  # ONNX Runtime raises one class per status code, without a common base
        raise BundleError(f"{path}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from None
    return runtime_of(session, artifact, path)


IN_MEMORY = "add_external_initializers_from_files_in_memory"


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """A model, and the files with its weights: `model.onnx.data`, and the quantized matrices, if there are any."""

    model: Path
    data: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """What the model's paths are relative to: its own folder, or up to schema version 6 that of the codes."""
        return self.data[-1].parent

    @property
    def are_links(self) -> bool:
        """Whether a store or a build tool put a link in the place of a file."""
        return any(path.is_symlink() for path in (self.model, *self.data))

    def session(self, options: Any) -> Any:
        """A session that maps the files."""
        if self.folder == self.model.parent:
            return _session(str(self.model), options)
        # older versions take another folder only for a model in memory
        options.add_session_config_entry(EXTERNAL_FOLDER, str(self.folder))
        return _session(self.model.read_bytes(), options)

    def session_in_memory(self, options: Any) -> Any:
        """A session that copies the files, wherever they lie."""
        content = {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in self.data}
        getattr(options, IN_MEMORY)(list(content), list(content.values()), list(map(len, content.values())))
        return _session(self.model.read_bytes(), options)


def _session(model: str | bytes, options: Any) -> Any:
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def runtime_of(session: Any, artifact: LoadedArtifact, path: Path) -> Runtime:
    """Run an artifact in a session that was prepared for its rows: part after part, where its graph is for others.

    Raises:
        BundleError: the model is not what the manifest says.
    """
    prepared = [port.shape[:1] for port in session.get_inputs()[:1]] == [[artifact.spec.batch_size]]
    check_session(session, artifact if prepared else artifact.as_exported(), path)

    def make(part: LoadedArtifact) -> OnnxRuntime:
        return OnnxRuntime(session, part.spec, part.initial)

    return make(artifact) if prepared else in_parts(artifact, make)


_TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}


def check_session(session: Any, artifact: LoadedArtifact, path: Path) -> None:
    """Compare what a model says about itself with the manifest: its properties, its inputs and outputs.

    Raises:
        BundleError: naming what differs.
    """
    artifact.identity.check(path, session.get_modelmeta().custom_metadata_map)
    spec = artifact.spec
    next_states = [dataclasses.replace(t, name=next_name(t.name)) for t in spec.states]
    for kind, ports, tensors in (
        ("input", session.get_inputs(), (*spec.inputs, *spec.states)),
        ("output", session.get_outputs(), (*spec.outputs, *next_states)),
    ):
        # outputs keep the symbol where their shape is not known before a step
        shapes = {port.name: [spec.batch_size if extent == ROWS else extent for extent in port.shape] for port in ports}
        own = {port.name: [_TYPES.get(port.type, port.type), *shapes[port.name]] for port in ports}
        compare(path, kind, own, {t.name: [t.dtype, *t.shape] for t in tensors})
