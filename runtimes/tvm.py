"""Runtime of the target `tvm`: the compiled step in Relax's virtual machine, its state updated in place.

TVM divides kernels among one pool of threads per calling thread. The pool's size is settled when it is first used; of
these threads every policy uses as many as it was loaded with.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from lram_export.machine import available_cpus

# before tvm makes its first pool: by itself it takes half of the processors, and ties threads to them
os.environ.setdefault("TVM_NUM_THREADS", str(len(available_cpus())))
os.environ.setdefault("TVM_BIND_THREADS", "0")

import numpy as np
import tvm
from numpy.typing import NDArray
from safetensors import safe_open
from tvm import relax

from lram_export.errors import BundleError, UsageError
from lram_export.runtimes.protocol import (
    LoadedArtifact,
    Runtime,
    State,
    StepInputs,
    StepOutput,
    check_rows,
    check_state,
)
from lram_export.specification import StepSpec
from lram_export.tvm.interface import (
    STEP_FUNCTION,
    WEIGHTS_FILE,
    Interface,
    from_stored,
    library_file,
    read_interface,
    stored_shape,
    to_stored,
)
from lram_export.tvm.platforms import PLATFORMS, TvmPlatform, unmet

BIG_CORES = 1
"""Affinity mode of TVM's pool: the fastest cores first."""

_configured = threading.local()
_configure_pool = tvm.get_global_func("runtime.config_threadpool")


class TvmRuntime:
    """The step with its inputs, outputs, weights and state in tensors that stay where they are."""

    def __init__(
        self, machine: relax.VirtualMachine, weights: list[Any], spec: StepSpec, memory_columns: int, threads: int
    ) -> None:
        self.spec = spec
        self._threads, self._columns = threads, memory_columns
        self._tensors = [_tensor(t.shape, t.dtype) for t in spec.inputs]
        self._inputs = StepInputs(spec, [_view(tensor) for tensor in self._tensors])
        action, logits = spec.outputs
        results = [_tensor(action.shape, action.dtype), _tensor((spec.batch_size, -1), logits.dtype, logits.size)]
        self._outputs = StepOutput(_view(results[0]), _view(results[1]).reshape(logits.shape))
        self._states = {t.name: _tensor(stored_shape(t, memory_columns), t.dtype) for t in spec.states}
        # the memory itself, in the kernels' layout
        self._state = {name: _view(tensor) for name, tensor in self._states.items()}
        machine.save_function(STEP_FUNCTION, "run", *self._tensors, *results, *weights, *self._states.values())
        self._machine: relax.VirtualMachine | None = machine
        self._run = machine["run"]
        self.reset()

    def step(
        self,
        observation: NDArray[np.generic],
        return_to_go: NDArray[np.float32],
        reward: NDArray[np.float32],
        is_first: NDArray[np.float32],
    ) -> StepOutput:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        if self._machine is None:
            raise RuntimeError("the runtime is closed")
        self._inputs.fill(observation, return_to_go, reward, is_first)
        if getattr(_configured, "threads", None) != self._threads:
            _configure_pool(BIG_CORES, self._threads)
            _configured.threads = self._threads
        self._run()
        return self._outputs

    def state(self) -> State:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        return {t.name: from_stored(t, self._state[t.name], self._columns) for t in self.spec.states}

    def load_state(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        check_state(self.spec, state)
        for tensor in self.spec.states:
            np.copyto(self._state[tensor.name], to_stored(tensor, state[tensor.name], self._columns))

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        chosen = check_rows(rows, self.spec.batch_size)
        for tensor in self.spec.states:
            self._state[tensor.name][chosen] = tensor.initial

    def close(self) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        self._machine = self._run = None
        self._state, self._states, self._tensors = {}, {}, []


def _tensor(shape: tuple[int, ...], dtype: str, size: int | None = None) -> Any:
    """A tensor of zeros in TVM's memory, aligned as its kernels expect."""
    zeros = np.zeros(shape, dtype) if size is None else np.zeros(size, dtype).reshape(shape)
    return tvm.runtime.tensor(zeros, tvm.cpu())


def _view(tensor: Any) -> NDArray[Any]:
    """A tensor's memory as a numpy array; valid as long as the tensor is."""
    return np.from_dlpack(tensor)


def unavailable(artifact: LoadedArtifact | None = None) -> str | None:
    """Why an artifact cannot run here, in one line; None if it can."""
    if artifact is None or _fitting(artifact) is not None:
        return None
    reasons = "; ".join(f"{name}: {_unmet(name)}" for name in artifact.platforms)
    return f"no library for this processor ({reasons}); export again with --target tvm --platform host"


def _fitting(artifact: LoadedArtifact) -> TvmPlatform | None:
    """The most demanding platform of an artifact that this processor meets."""
    there = [platform for name, platform in PLATFORMS.items() if name in artifact.platforms]
    return next((platform for platform in there if unmet(platform) is None), None)


def _unmet(name: str) -> str:
    return (unmet(PLATFORMS[name]) or "") if name in PLATFORMS else "unknown to this lram-export"


def load(artifact: LoadedArtifact, threads: int) -> Runtime:
    """Load the library for this processor and the weights.

    Raises:
        UsageError: no library in it runs on this processor; it is not even loaded.
        BundleError: the artifact is damaged or was written by another version of TVM.
    """
    platform = _fitting(artifact)
    if platform is None:
        raise UsageError(f"{artifact.directory}: {unavailable(artifact)}")
    interface = read_interface(artifact.directory)
    return load_library(artifact, interface, artifact.directory / library_file(platform.name), platform, threads)


def load_library(artifact: LoadedArtifact, interface: Interface, path: Any, platform: TvmPlatform, threads: int) -> Runtime:
    """The runtime of a library for a platform."""
    weights = _load_weights(artifact, interface)
    try:
        machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
        return TvmRuntime(machine, weights, artifact.spec, platform.memory_columns, threads)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        first = str(error).strip().splitlines()[0]
        raise BundleError(
            f"{path}: TVM {tvm.__version__} cannot run it ({first}); export the bundle again with this version"
        ) from None


def _load_weights(artifact: LoadedArtifact, interface: Interface) -> list[Any]:
    """Weights one by one in TVM's memory, so that they lie in memory once."""
    path = artifact.directory / WEIGHTS_FILE
    weights = []
    try:
        with safe_open(path, framework="numpy") as file:
            for entry in interface.weights:
                array = file.get_tensor(entry.name)
                if array.shape != entry.shape or str(array.dtype) != entry.dtype:
                    raise BundleError(f"{path}: {entry.name}: not what interface.json describes; export again")
                weights.append(tvm.runtime.tensor(np.ascontiguousarray(array), tvm.cpu()))
    except (OSError, ValueError, RuntimeError) as error:
        raise BundleError(f"{path}: not readable ({error}); export the bundle again") from None
    return weights
