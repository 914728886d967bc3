"""Runtime of the target `tvm`: the compiled step in Relax's virtual machine, which updates its state in place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.artifact import LoadedArtifact
from lram_export.errors import BundleError, UsageError
from lram_export.runtimes.base import BaseRuntime
from lram_export.runtimes.guard import use_threads_of
from lram_export.runtimes.protocol import Runtime, State, StepInputs, StepOutput
from lram_export.runtimes.stacked import in_parts
from lram_export.runtimes.tvm_module import TvmModuleRuntime
from lram_export.targets.tvm.interface import (
    INTERFACE_FILE,
    STEP_FUNCTION,
    WEIGHTS_FILE,
    Interface,
    from_stored,
    library_file,
    map_weights,
    read_interface,
    stored_shape,
    to_stored,
)
from lram_export.targets.tvm.platforms import PLATFORMS, TvmPlatform, unmet
from lram_export.targets.tvm.virtual_machine import VirtualMachine, aligned, settle_spinning, use_threads


class TvmRuntime(BaseRuntime):
    """The step with its inputs, outputs, weights and state in arrays that stay where they are."""

    def __init__(
        self,
        machine: VirtualMachine,
        weights: list[NDArray[Any]],
        artifact: LoadedArtifact,
        memory_columns: int,
        threads: int,
    ) -> None:
        spec = artifact.spec
        super().__init__(spec, artifact.initial, StepInputs(spec, [aligned(t.shape, t.dtype) for t in spec.inputs]))
        self._threads, self._columns = threads, memory_columns
        self._outputs = StepOutput(spec, (aligned(t.shape, t.dtype) for t in spec.outputs))
        # in the kernels' layout
        self._state = {t.name: aligned(stored_shape(t, memory_columns), t.dtype) for t in spec.states}
        action, logits = self._outputs
        self._arrays = [*self._inputs.arrays, action, logits.reshape(len(logits), -1), *weights, *self._state.values()]
        self._run: Any = machine.bound(STEP_FUNCTION, self._arrays)
        self.reset()

    def _step(self) -> StepOutput:
        use_threads(self._threads)
        self._run()
        return self._outputs

    def _save(self) -> State:
        return {t.name: from_stored(t, self._state[t.name], self._columns) for t in self.spec.states}

    def _load(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        for tensor in self.spec.states:
            np.copyto(self._state[tensor.name], to_stored(tensor, state[tensor.name], self._columns))

    def _restart(self, rows: list[int]) -> None:
        for tensor in self.spec.states:
            stored = to_stored(tensor, self._initial[tensor.name], self._columns)
            self._state[tensor.name][rows] = stored[rows]

    def _free(self) -> None:
        self._run = None
        self._state, self._arrays = {}, []


TVM = "tvm"
_REFUSALS = (RuntimeError, OSError, ValueError, TypeError, AttributeError, ImportError)
"""What TVM raises for a library that it does not accept: which of them depends on the check."""


def unavailable(artifact: LoadedArtifact | None = None) -> str | None:
    """Why an artifact cannot run here, in one line; None if it can."""
    if artifact is None or _fitting(artifact) is not None:
        return None
    reasons = "; ".join(f"{name}: {_unmet(name)}" for name in artifact.platforms)
    return f"no library for this processor ({reasons}); export again with --target tvm --platform host"


def covers(artifact: LoadedArtifact) -> bool:
    """Whether what is loaded here is all that the artifact has: one library, and it runs on this machine."""
    return len(artifact.platforms) == 1 and _fitting(artifact) is not None


def _fitting(artifact: LoadedArtifact) -> TvmPlatform | None:
    """The most demanding platform of an artifact that this processor meets."""
    there = [platform for name, platform in PLATFORMS.items() if name in artifact.platforms]
    return next((platform for platform in there if unmet(platform) is None), None)


def _unmet(name: str) -> str:
    return (unmet(PLATFORMS[name]) or "") if name in PLATFORMS else "unknown to this lram-export"


def load(artifact: LoadedArtifact, threads: int, spin: bool = True) -> Runtime:
    """Load the library for this processor and the weights.

    ``spin`` holds for the whole process, and the first policy of this target that is loaded in it decides.

    Raises:
        UsageError: no library in it runs on this processor; none is even loaded.
        BundleError: the artifact is damaged or was written by another version of TVM.
        LramError: TVM was in use before this process forked.
    """
    use_threads_of(TVM)  # first: behind a fork no GPU is found
    platform = _fitting(artifact)
    if platform is None:
        raise UsageError(f"{artifact.directory}: {unavailable(artifact)}")
    settle_spinning(spin)
    return load_own_library(artifact, platform, threads)


def load_own_library(artifact: LoadedArtifact, platform: TvmPlatform, threads: int) -> Runtime:
    """The runtime of an artifact's library for a platform; raises BundleError."""
    interface = read_interface(artifact.directory)
    columns = interface.memory_columns.get(platform.name)
    if columns is None:
        raise BundleError(f"{artifact.directory}: the manifest names {platform.name}, {INTERFACE_FILE} does not")
    # as it was compiled, whatever size this version would choose
    compiled = dataclasses.replace(platform, memory_columns=columns)
    return load_library(artifact, interface, artifact.file(library_file(platform.name)), compiled, threads)


def load_library(
    artifact: LoadedArtifact, interface: Interface, path: Path, platform: TvmPlatform, threads: int
) -> Runtime:
    """The runtime of a library that was compiled for a platform; raises BundleError."""
    use_threads_of(TVM)
    artifact.identity.check(artifact.directory / INTERFACE_FILE, interface.identity)
    weights = map_weights(interface.weights, artifact.file(WEIGHTS_FILE))
    try:
        if platform.gpu is not None:
            import tvm

            from lram_export.runtimes.tvm_gpu import GpuRuntime, on_device

            columns, there = platform.memory_columns, on_device(weights, tvm.cuda(0))
            return in_parts(artifact, lambda part: GpuRuntime(path, there, part, columns, tvm.cuda(0)))
        machine = VirtualMachine(path)
        if artifact.task is None:
            return in_parts(artifact, lambda part: TvmModuleRuntime(machine, weights, part, threads))
        columns = platform.memory_columns
        return in_parts(artifact, lambda part: TvmRuntime(machine, weights, part, columns, threads))
    except _REFUSALS as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BundleError(f"{path}: TVM cannot run it ({lines[0]}); export it again with this version of TVM") from None
