"""The few calls of the CUDA runtime that a step needs, with errors in one line. Needs `cuda-python` (cuda-bindings)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.errors import LramError
from lram_export.system.machine import available_memory


class CudaError(LramError):
    """A CUDA call failed."""


@dataclass(frozen=True)
class Gpu:
    """The GPU that steps run on; memory in bytes."""

    name: str
    compute_capability: str
    memory: int
    free_memory: int
    driver: str


def runtime() -> Any:
    """The module with CUDA's calls; importing it needs neither driver nor GPU."""
    return import_module("cuda.bindings.runtime")


def unavailable() -> str | None:
    """Why no GPU can be used here, in one line, or None if one can."""
    cuda = runtime()
    error, count = cuda.cudaGetDeviceCount()
    if error == cuda.cudaError_t.cudaErrorInsufficientDriver:
        _, version = cuda.cudaDriverGetVersion()
        if version == 0:
            return "no NVIDIA driver here (nvidia-smi would fail too)"
        _, needed = cuda.cudaRuntimeGetVersion()
        return f"the NVIDIA driver serves CUDA {_version(version)}, cuda-bindings here needs {_version(needed)}"
    if error != cuda.cudaError_t.cudaSuccess:
        return f"CUDA says {error.name}"
    return None if count else "no NVIDIA GPU here"


def current_gpu() -> Gpu:
    """The GPU in use (``CUDA_VISIBLE_DEVICES`` chooses)."""
    cuda = runtime()
    device = call(cuda.cudaGetDevice())
    properties = call(cuda.cudaGetDeviceProperties(device))
    free, total = call(cuda.cudaMemGetInfo())
    if properties.integrated:  # one memory for all: what the system would give back, CUDA does not count as free
        free = max(free, available_memory() or 0)
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    driver = _version(call(cuda.cudaDriverGetVersion()))
    return Gpu(name, f"{properties.major}.{properties.minor}", total, free, driver)


def call(result: tuple[Any, ...]) -> Any:
    """What a CUDA call returned beside its status: nothing, one value or several; raises CudaError."""
    error, *values = result
    if int(error) != 0:
        raise CudaError(f"CUDA: {error.name}")
    return values[0] if len(values) == 1 else tuple(values) or None


class DeviceArray:
    """Memory on the GPU with the shape of a numpy array."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        self.address: int = call(runtime().cudaMalloc(self.nbytes))

    def upload(self, array: NDArray[np.generic], row: int | None = None) -> None:
        """Copy a whole array here, or one batch row of it."""
        offset = 0 if row is None else row * (self.nbytes // self.shape[0])
        contiguous = np.ascontiguousarray(array, self.dtype)
        kind = runtime().cudaMemcpyKind.cudaMemcpyHostToDevice
        call(runtime().cudaMemcpy(self.address + offset, contiguous.ctypes.data, contiguous.nbytes, kind))
        # from ordinary memory it may return before the copy has arrived, and a step's stream does not wait for it
        call(runtime().cudaDeviceSynchronize())

    def download(self) -> NDArray[Any]:
        """A copy on the host."""
        array = np.empty(self.shape, self.dtype)
        kind = runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(runtime().cudaMemcpy(array.ctypes.data, self.address, self.nbytes, kind))
        return array

    def free(self) -> None:
        """Give the memory back; safe to call twice."""
        if self.address:
            runtime().cudaFree(self.address)
            self.address = 0


class PinnedArray:
    """A numpy array in page-locked memory, which the GPU copies from and to without a detour."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self.address: int = call(runtime().cudaMallocHost(size))
        self.nbytes = size
        memory = (ctypes.c_ubyte * size).from_address(self.address)
        self.array: NDArray[Any] = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
        self.array[...] = 0

    def free(self) -> None:
        """Give the memory back; the array must not be used afterwards. Safe to call twice."""
        if self.address:
            runtime().cudaFreeHost(self.address)
            self.address = 0


def _version(number: int) -> str:
    """CUDA's way to count: 12060 is 12.6."""
    return f"{number // 1000}.{number % 1000 // 10}"
