"""Runtime of the target `tensorrt`: the state stays on the GPU, a step is one CUDA graph.

Two sets of state buffers swap: even steps read set 0 and write set 1, odd steps the other way round. Copying the
inputs to the GPU, the engine and copying the outputs back are captured once per direction, and replayed.
Snapshots, loads and resets copy to and from the set that the next step reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.artifact import LoadedArtifact
from lram_export.errors import BundleError, LramError, UsageError
from lram_export.runtimes.base import BaseRuntime
from lram_export.runtimes.guard import use_threads_of
from lram_export.runtimes.protocol import Runtime, State, StepInputs, StepOutput
from lram_export.runtimes.stacked import in_parts
from lram_export.spec.tensors import InitialTensors, StepSpec, next_name
from lram_export.targets.tensorrt import cuda
from lram_export.targets.tensorrt.cuda import CudaError, DeviceArray, PinnedArray, call
from lram_export.targets.tensorrt.engines import EngineKey, EngineStore
from lram_export.targets.tensorrt.recipe import BuildRecipe, artifact_recipe
from lram_export.targets.tensorrt.toolkit import Toolkit, find_toolkit, refusal

TYPES = {"FLOAT": "float32", "INT64": "int64", "UINT8": "uint8", "INT32": "int32", "BOOL": "bool"}


class TensorrtRuntime(BaseRuntime):
    """The step graph as an engine on the GPU."""

    in_place = False

    def __init__(self, engine: Any, spec: StepSpec, initial: InitialTensors) -> None:
        """Allocate everything a step needs and capture its graphs; raises CudaError or LramError, and frees it."""
        super().__init__(spec, initial)
        self._engine: Any = engine
        self._held: list[DeviceArray | PinnedArray] = []
        self._stream: Any = None
        self._contexts: list[Any] = []
        self._graphs: list[Any] = []
        self._current = 0
        try:
            self._allocate()
            # one context per direction: its addresses are set once and stay what the graph has captured
            self._contexts = [self._bind(self._states[i], self._states[1 - i]) for i in range(2)]
            self.reset()
            self._graphs = [self._capture(context) for context in self._contexts]
            self.reset()  # capturing has run the engine
        except LramError:
            self.close()
            raise

    def _allocate(self) -> None:
        spec = self.spec
        self._host_inputs = [self._hold(PinnedArray(t.shape, t.dtype)) for t in spec.inputs]
        self._inputs = StepInputs(spec, [pinned.array for pinned in self._host_inputs])
        self._host_outputs = [self._hold(PinnedArray(t.shape, t.dtype)) for t in spec.outputs]
        self._outputs = StepOutput.zeros(spec)
        self._device_inputs = [self._hold(DeviceArray(t.shape, t.dtype)) for t in spec.inputs]
        self._device_outputs = [self._hold(DeviceArray(t.shape, t.dtype)) for t in spec.outputs]
        self._states = tuple({t.name: self._hold(DeviceArray(t.shape, t.dtype)) for t in spec.states} for _ in range(2))
        self._stream = call(cuda.runtime().cudaStreamCreateWithFlags(cuda.runtime().cudaStreamNonBlocking))

    def _hold(self, memory: Any) -> Any:
        self._held.append(memory)
        return memory

    def _bind(self, source: dict[str, DeviceArray], destination: dict[str, DeviceArray]) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise LramError("tensorrt: not enough GPU memory for this engine; free some, or export a smaller precision")
        for tensor, array in zip(
            (*self.spec.inputs, *self.spec.outputs), (*self._device_inputs, *self._device_outputs), strict=True
        ):
            context.set_tensor_address(tensor.name, array.address)
        for name in source:
            context.set_tensor_address(name, source[name].address)
            context.set_tensor_address(next_name(name), destination[name].address)
        return context

    def _enqueue(self, context: Any) -> None:
        runtime = cuda.runtime()
        down, up = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for host, device in zip(self._host_inputs, self._device_inputs, strict=True):
            call(runtime.cudaMemcpyAsync(device.address, host.address, host.nbytes, down, self._stream))
        if not context.execute_async_v3(int(self._stream)):
            raise CudaError("tensorrt: the engine cannot be started")
        for host, device in zip(self._host_outputs, self._device_outputs, strict=True):
            call(runtime.cudaMemcpyAsync(host.address, device.address, host.nbytes, up, self._stream))

    def _capture(self, context: Any) -> Any:
        """An executable graph of one step."""
        runtime = cuda.runtime()
        self._enqueue(context)  # TensorRT does work in a first run that must not be part of the graph
        call(runtime.cudaStreamSynchronize(self._stream))
        call(
            runtime.cudaStreamBeginCapture(self._stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        )
        try:
            self._enqueue(context)
        except CudaError:
            runtime.cudaStreamEndCapture(self._stream)  # leaves the stream usable; its own error would hide ours
            raise
        graph = call(runtime.cudaStreamEndCapture(self._stream))
        executable = call(runtime.cudaGraphInstantiate(graph, 0))
        call(runtime.cudaGraphDestroy(graph))
        return executable

    def _step(self) -> StepOutput:
        runtime = cuda.runtime()
        call(runtime.cudaGraphLaunch(self._graphs[self._current], self._stream))
        call(runtime.cudaStreamSynchronize(self._stream))
        for result, pinned in zip(self._outputs, self._host_outputs, strict=True):
            np.copyto(result, pinned.array)  # which close() frees
        return self._outputs

    def _commit(self) -> None:
        self._current = 1 - self._current

    def _save(self) -> State:
        return {name: array.download() for name, array in self._states[self._current].items()}

    def _load(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        for name, array in self._states[self._current].items():
            array.upload(state[name])

    def _restart(self, rows: list[int]) -> None:
        for name, array in self._states[self._current].items():
            for row in rows:
                array.upload(self._initial[name][row], row)

    def _free(self) -> None:
        runtime = cuda.runtime()
        for graph in self._graphs:
            runtime.cudaGraphExecDestroy(graph)
        self._graphs, self._contexts, self._engine = [], [], None
        if self._stream is not None:
            runtime.cudaStreamDestroy(self._stream)
            self._stream = None
        for memory in self._held:
            memory.free()
        self._held = []


def unavailable(artifact: LoadedArtifact | None = None) -> str | None:
    """Why this target, or an artifact of it, cannot run here although its packages are installed, or None."""
    try:
        toolkit = find_toolkit()
        reason = cuda.unavailable() or refusal(toolkit, cuda.current_gpu())
        if reason is None and artifact is not None:
            find_engine(toolkit, cuda.current_gpu(), artifact_recipe(artifact), artifact)
    except LramError as error:
        return str(error)
    return reason


def load(artifact: LoadedArtifact, threads: int, spin: bool = True) -> Runtime:
    """Load the engine for this GPU: one in the bundle, else the one that `compile` left next to it.

    Where `compile` has left one for the rows that are asked for, it is taken; else that for the rows of the bundle
    computes them part after part. ``threads`` and ``spin`` change nothing: the GPU computes.

    Raises:
        UsageError: no driver or GPU; no engine for this GPU and TensorRT.
        BundleError: a damaged engine, or one that is not the step graph.
        LramError: the GPU has not enough memory, or was in use before this process forked.
    """
    use_threads_of("tensorrt")
    toolkit = find_toolkit()
    reason = cuda.unavailable() or refusal(toolkit, cuda.current_gpu())
    if reason is not None:
        raise UsageError(f"target 'tensorrt': {reason}; run another target of the bundle, e.g. --target onnxruntime")
    gpu, recipe = cuda.current_gpu(), artifact_recipe(artifact)
    path, rows = find_engine(toolkit, gpu, recipe, artifact)
    return load_engine(toolkit, gpu, memoryview(path.read_bytes()), path, artifact, rows)


def load_engine(
    toolkit: Toolkit, gpu: cuda.Gpu, plan: memoryview, path: Path, artifact: LoadedArtifact, rows: int
) -> Runtime:
    """Run an artifact on an engine for a number of rows, which messages call by its path; raises as :func:`load`."""
    if len(plan) > gpu.free_memory:
        raise LramError(
            f"{path}: {len(plan):,} bytes of engine do not fit the {gpu.free_memory:,} bytes free on {gpu.name}; "
            f"free some, or export a smaller precision"
        )
    toolkit.logger.messages.clear()
    runtime = toolkit.module.Runtime(toolkit.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BundleError(f"{path}: {toolkit.label} does not accept it on {gpu.name}: {toolkit.logger.reason()}")
    check_interface(engine, artifact.spec.with_batch(rows), path)
    of_engine = dataclasses.replace(artifact, exported_batch=rows)
    return in_parts(of_engine, lambda part: TensorrtRuntime(engine, part.spec, part.initial))


def engine_key(toolkit: Toolkit, gpu: cuda.Gpu, recipe: BuildRecipe, artifact: LoadedArtifact) -> EngineKey:
    """What the engine of an artifact for its rows on this machine is called."""
    rows = artifact.spec.batch_size
    return EngineKey(
        toolkit.name,
        toolkit.version,
        gpu.compute_capability,
        recipe.precision,
        artifact.digest,
        None if rows == artifact.exported_batch else rows,
    )


def find_engine(toolkit: Toolkit, gpu: cuda.Gpu, recipe: BuildRecipe, artifact: LoadedArtifact) -> tuple[Path, int]:
    """An engine for this GPU and TensorRT, and for how many rows it is: those of the artifact, else those it was
    exported for; raises UsageError saying which there are and what to run."""
    bundle = artifact.directory.parent
    store = EngineStore.of(bundle)
    if artifact.spec.batch_size != artifact.exported_batch:
        path = store.find(engine_key(toolkit, gpu, recipe, artifact))
        if path is not None:
            return path, artifact.spec.batch_size
    for entry in recipe.engines:
        if entry.runs_on(toolkit.name, toolkit.version, gpu.compute_capability):
            return artifact.file(entry.file), artifact.exported_batch
    path = store.find(engine_key(toolkit, gpu, recipe, artifact.as_exported()))
    if path is not None:
        return path, artifact.exported_batch
    there = [f"{e.toolkit}-{e.version} for {' '.join(e.compute_capabilities)}" for e in recipe.engines] + store.others()
    raise UsageError(
        f"{bundle}: no engine for {gpu.name} (compute capability {gpu.compute_capability}) and {toolkit.label}; "
        f"there {'is: ' + ', '.join(there) if there else 'is none'}. "
        f"Build it: lram-export compile {bundle} --target tensorrt"
    )


def check_interface(engine: Any, spec: StepSpec, path: Path) -> None:
    """Compare an engine's tensors with the specification; raises BundleError naming what differs."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    expected = {t.name: t for t in (*spec.inputs, *spec.outputs, *spec.states)}
    expected |= {next_name(t.name): t for t in spec.states}
    if set(names) != set(expected):
        odd = sorted(set(names) ^ set(expected))[0]
        raise BundleError(f"{path}: tensor '{odd}' is {'not' if odd in names else 'only'} in the specification")
    for name, tensor in expected.items():
        shape = tuple(engine.get_tensor_shape(name))
        dtype = TYPES.get(engine.get_tensor_dtype(name).name, engine.get_tensor_dtype(name).name)
        if (shape, dtype) != (tensor.shape, tensor.dtype):
            raise BundleError(
                f"{path}: tensor '{name}' is {dtype} of shape {shape}, the specification says {tensor.dtype} "
                f"of shape {tensor.shape}"
            )
