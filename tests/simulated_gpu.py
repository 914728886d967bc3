"""A GPU made of host memory, and a TensorRT whose engines ONNX Runtime computes: for machines that have neither.

What is tested with it is this project's side: which memory is bound to which tensor, that two sets of state swap, what
a captured graph replays, what is built, kept, found and refused. What NVIDIA's libraries do is not tested by it.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from lram_export.errors import UsageError
from lram_export.runtimes.onnxruntime import session_options
from lram_export.targets.tensorrt import cuda, toolkit
from lram_export.verification.stand_in_tensorrt import session_of

MAGIC = b"simulated plan\n"


class Status(enum.IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815


class SimulatedCuda:
    """The calls of ``cuda.bindings.runtime`` that are used, on host memory; work is recorded during a capture."""

    cudaError_t = Status  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815

    def __init__(self, memory: int = 8_000_000_000) -> None:
        self.memory, self.capability = memory, (8, 7)
        self.blocks: dict[int, Any] = {}
        self.capturing: list[Callable[[], None]] | None = None
        self.launches = 0

    def _allocate(self, size: int) -> tuple[Status, int]:
        if size > self._free():
            return Status.cudaErrorMemoryAllocation, 0
        block = (ctypes.c_ubyte * size)()
        ctypes.memset(block, 0xFF, size)  # NaN, as fresh memory may hold anything
        address = ctypes.addressof(block)
        self.blocks[address] = block
        return Status.cudaSuccess, address

    def _free(self) -> int:
        return self.memory - sum(len(block) for block in self.blocks.values())

    def submit(self, work: Callable[[], None]) -> None:
        """Run work, or record it while a graph is captured."""
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)

    cudaMalloc = cudaMallocHost = _allocate  # noqa: N815

    def cudaFree(self, address: int) -> tuple[Status]:  # noqa: N802
        del self.blocks[address]
        return (Status.cudaSuccess,)

    cudaFreeHost = cudaFree  # noqa: N815

    def cudaMemcpy(self, to: int, source: int, size: int, kind: int) -> tuple[Status]:  # noqa: N802
        ctypes.memmove(to, source, size)
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[Status]:  # noqa: N802
        self.submit(lambda: ctypes.memmove(to, source, size) and None)
        return (Status.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Status, int]:  # noqa: N802
        return Status.cudaSuccess, 77

    def cudaStreamDestroy(self, stream: int) -> tuple[Status]:  # noqa: N802
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:  # noqa: N802
        return (Status.cudaSuccess,)

    def cudaDeviceSynchronize(self) -> tuple[Status]:  # noqa: N802
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Status]:  # noqa: N802
        self.capturing = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Status, Any]:  # noqa: N802
        recorded, self.capturing = self.capturing, None
        return Status.cudaSuccess, recorded

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Status, Any]:  # noqa: N802
        return Status.cudaSuccess, list(graph)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Status]:  # noqa: N802
        return (Status.cudaSuccess,)

    cudaGraphExecDestroy = cudaGraphDestroy  # noqa: N815

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[Status]:  # noqa: N802
        self.launches += 1
        for work in graph:
            work()
        return (Status.cudaSuccess,)

    def cudaGetDeviceCount(self) -> tuple[Status, int]:  # noqa: N802
        return Status.cudaSuccess, 1

    def cudaGetDevice(self) -> tuple[Status, int]:  # noqa: N802
        return Status.cudaSuccess, 0

    def cudaGetDeviceProperties(self, device: int) -> tuple[Status, Any]:  # noqa: N802
        major, minor = self.capability
        return Status.cudaSuccess, SimpleNamespace(name=b"Simulated Orin", major=major, minor=minor, integrated=0)

    def cudaMemGetInfo(self) -> tuple[Status, int, int]:  # noqa: N802
        return Status.cudaSuccess, self._free(), self.memory

    def cudaDriverGetVersion(self) -> tuple[Status, int]:  # noqa: N802
        return Status.cudaSuccess, 12060


class SimulatedTensorrt:
    """The part of the ``tensorrt`` module that is used. A plan names the ONNX file it was built from, and its rows."""

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    class IProgressMonitor:
        pass

    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    BuilderFlag = SimpleNamespace(TF32="TF32")
    MemoryPoolType = SimpleNamespace(WORKSPACE="WORKSPACE")

    def __init__(self, gpu: SimulatedCuda, version: str = "10.3.0") -> None:
        self.__version__, self.gpu = version, gpu
        self.builds: list[SimpleNamespace] = []
        self.failure: str | None = None
        """What the next build says when it fails."""

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        return SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(flags=flags),
            create_builder_config=_Config,
            build_serialized_network=lambda network, config: self._build(logger, network, config),
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:  # noqa: N802
        def parse(path: str) -> bool:
            network.path = path
            graph = onnx.load(path, load_external_data=False).graph
            network.inputs = [_NetworkInput(value) for value in graph.input]
            network.num_inputs, network.get_input = len(network.inputs), network.inputs.__getitem__
            return True

        return SimpleNamespace(parse_from_file=parse, num_errors=0)

    def _build(self, logger: Any, network: Any, config: Any) -> bytes | None:
        config.progress_monitor.phase_start("Building", None, 4)
        for step in range(4):
            if not config.progress_monitor.step_complete("Building", step):
                return None
        config.progress_monitor.phase_finish("Building")
        rows = {tensor.shape[0] for tensor in network.inputs}
        assert len(rows) == 1 and min(rows) > 0, "a step has one number of rows, which is known"
        self.builds.append(SimpleNamespace(path=network.path, config=config, flags=network.flags, rows=min(rows)))
        if self.failure is not None:
            logger.log(self.ILogger.ERROR, self.failure)
            return None
        return MAGIC + f"{min(rows)} {network.path}".encode()

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        def deserialize(plan: memoryview) -> Any:
            if not bytes(plan).startswith(MAGIC):
                logger.log(self.ILogger.ERROR, "not a plan of this version")
                return None
            rows, path = bytes(plan[len(MAGIC) :]).decode().split(" ", 1)
            return _Engine(Path(path), int(rows), self.gpu)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class _NetworkInput:
    def __init__(self, value: Any) -> None:
        self.name = value.name
        self.shape = tuple(-1 if d.dim_param else d.dim_value for d in value.type.tensor_type.shape.dim)


class _Config:
    def __init__(self) -> None:
        self.set_flags: set[str] = set()
        self.limits: dict[str, int] = {}
        self.cache: Any = None
        self.builder_optimization_level = -1
        self.progress_monitor: Any = None

    def set_flag(self, flag: str) -> None:
        self.set_flags.add(flag)

    def clear_flag(self, flag: str) -> None:
        self.set_flags.discard(flag)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.limits[pool] = size

    def create_timing_cache(self, content: bytes) -> Any:
        return SimpleNamespace(serialize=lambda: content + b"timed")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True


class _Engine:
    def __init__(self, path: Path, rows: int, gpu: SimulatedCuda) -> None:
        self._gpu, self._rows = gpu, rows
        self._session = session_of(path, session_options(1, rows))
        graph = onnx.load(str(path), load_external_data=False).graph
        self._inputs, self._outputs = ([self._describe(v) for v in values] for values in (graph.input, graph.output))
        self.num_io_tensors = len(self._inputs) + len(self._outputs)

    def _describe(self, value: Any) -> tuple[str, tuple[int, ...], np.dtype[Any]]:
        kind = value.type.tensor_type
        shape = tuple(self._rows if d.dim_param else d.dim_value for d in kind.shape.dim)
        return value.name, shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)

    def _all(self) -> list[tuple[str, tuple[int, ...], np.dtype[Any]]]:
        return self._inputs + self._outputs

    def get_tensor_name(self, index: int) -> str:
        return self._all()[index][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return next(shape for n, shape, _ in self._all() if n == name)

    def get_tensor_dtype(self, name: str) -> Any:
        dtype = next(d for n, _, d in self._all() if n == name)
        return SimpleNamespace(name={"float32": "FLOAT", "int64": "INT64", "uint8": "UINT8"}[dtype.name])

    def create_execution_context(self) -> Any:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, address: int) -> None:
        assert address in self._engine._gpu.blocks, f"{name}: not memory of the GPU"
        self._addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        bound = dict(self._addresses)  # a captured graph keeps the addresses of its capture

        def run() -> None:
            engine = self._engine
            feed = {name: _view(bound[name], shape, dtype).copy() for name, shape, dtype in engine._inputs}
            results = engine._session.run([name for name, _, _ in engine._outputs], feed)
            for (name, shape, dtype), result in zip(engine._outputs, results, strict=True):
                _view(bound[name], shape, dtype)[...] = result

        self._engine._gpu.submit(run)
        return True


def _view(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(address)).view(dtype).reshape(shape)


def install(patch: pytest.MonkeyPatch, gpu: SimulatedCuda | None = None) -> SimulatedTensorrt:
    """Let the target `tensorrt` find a simulated GPU and a simulated TensorRT."""
    gpu = gpu or SimulatedCuda()
    trt = SimulatedTensorrt(gpu)
    patch.setattr(cuda, "runtime", lambda: gpu)

    def import_simulated(name: str) -> Any:
        if name != toolkit.TENSORRT:
            raise UsageError(f"{name}: not simulated")
        return trt

    patch.setattr(toolkit, "find_spec", lambda name: name == toolkit.TENSORRT or None)
    patch.setattr(toolkit, "import_module", import_simulated)
    return trt
