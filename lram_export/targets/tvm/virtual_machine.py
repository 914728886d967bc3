"""Relax's virtual machine without the package `tvm`, which brings a compiler and LLVM along: 3 MB instead of 260.

Only `libtvm_runtime.so` is loaded, out of the installed package, and called through `tvm_ffi`.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi
from numpy.typing import NDArray

from lram_export.errors import LramError
from lram_export.system.machine import available_cpus
from lram_export.targets.tvm.interface import ALIGNMENT

SPIN_COUNTS = {True: "3000", False: "300"}
"""How often an idle thread looks for work before it sleeps, where it may spin between steps and where it shall not:
about a millisecond, and a tenth of it, which lasts from one kernel of a step to the next. TVM's own 300,000 keep a core
busy through the pauses of a 50 Hz loop, and whoever shares the processor waiting; steps in a row take as long with
either."""
_SPIN_COUNT = "TVM_THREAD_POOL_SPIN_COUNT"

_CPU, _POOLED_ALLOCATOR = 1, 2
_BIG_CORES = 1  # affinity mode of the thread pool: the fastest cores first
_configured = threading.local()


@functools.cache
def _runtime_library() -> ctypes.CDLL:
    spec = find_spec("tvm")
    for folder in (spec.submodule_search_locations if spec is not None else None) or []:
        path = Path(folder) / "lib" / "libtvm_runtime.so"
        if path.exists():
            # TVM settles the size of its pool when it is first used: by itself it takes half of the processors, and
            # ties its threads to them
            os.environ.setdefault("TVM_NUM_THREADS", str(len(available_cpus())))
            os.environ.setdefault("TVM_BIND_THREADS", "0")
            settle_spinning(True)
            return ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    raise LramError(
        "tvm: the installed package holds no libtvm_runtime.so; pip install apache-tvm (not 'tvm', another project)"
    )


def settle_spinning(spin: bool) -> None:
    """Say whether threads may spin between steps, for the whole process: the first to say so has it."""
    os.environ.setdefault(_SPIN_COUNT, SPIN_COUNTS[spin])


_loads = itertools.count()


def loadable(path: Path) -> str:
    """A name under which the system has loaded nothing yet, for a library at a path.

    A library that was loaded before is not looked at again where its name is the same, and so would go on running
    where a bundle was replaced by another one. So the number of the load is written between folder and file, its bits
    as `./` and `/`, which lead nowhere else. It takes no folder that can be written to.
    """
    folder = path.parent.absolute()
    return f"{folder}/{''.join('./' if bit == '1' else '/' for bit in f'{next(_loads):b}')}{path.name}"


class VirtualMachine:
    """One loaded library on the processor."""

    def __init__(self, path: Path) -> None:
        """Load a library; raises RuntimeError or OSError if TVM does not accept it."""
        _runtime_library()
        self._library = tvm_ffi.load_module(loadable(path))
        self._machine = self._library["vm_load_executable"]()
        self._machine["vm_initialization"](_CPU, 0, _POOLED_ALLOCATOR)
        self._bound = 0

    def _own_name(self, name: str) -> str:
        """One that no function was bound under yet: what is bound is looked up again at every call."""
        self._bound += 1
        return f"{name}_{self._bound}"

    def bound(self, name: str, arrays: list[NDArray[Any]]) -> Any:
        """The function ``name`` as a function without arguments, which reads and writes the arrays in place.

        The arrays, made by :func:`aligned`, must outlive it.
        """
        saved = self._own_name(name)
        include_return = 0
        self._machine["save_function"](name, saved, include_return, *map(tvm_ffi.from_dlpack, arrays))
        return self._machine[saved]

    def returning(self, name: str, arrays: list[NDArray[Any]]) -> Any:
        """The function ``name`` as a function without arguments, which reads the arrays, made by :func:`aligned`, and
        returns its results as a sequence of tensors."""
        saved = self._own_name(name)
        include_return = 1
        self._machine["save_function"](name, saved, include_return, *map(tvm_ffi.from_dlpack, arrays))
        return self._machine[saved]


def use_threads(threads: int) -> None:
    """Make the kernels that this thread calls use so many threads.

    TVM has one pool per calling thread; no more threads than processors are in it.
    """
    if getattr(_configured, "threads", None) != threads:
        tvm_ffi.get_global_func("runtime.config_threadpool")(_BIG_CORES, threads)
        _configured.threads = threads


def aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array of zeros that TVM's kernels can read and write."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    array: NDArray[Any] = memory[start : start + size].view(dtype).reshape(shape)
    return array
