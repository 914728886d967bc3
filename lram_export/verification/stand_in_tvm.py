"""Verifies everything that is in an artifact, on this processor: what was compiled for it, and what was not.

Libraries that run here are run. What was compiled for another processor is represented by the same kernels and weights
compiled for this one; kernels for a GPU by their own text, blocks and threads one after the other. All of them step
side by side and have to agree, so that a comparison of one with the reference is one of all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.artifact import LoadedArtifact
from lram_export.errors import LramError
from lram_export.exporters.tvm.build import build_library
from lram_export.exporters.tvm.graph import build_step
from lram_export.kernels.tvm import cpu, gpu
from lram_export.model.config import read_model
from lram_export.runtimes.protocol import Runtime, State, StepOutput, check_rows
from lram_export.runtimes.tvm import load_library, load_own_library
from lram_export.spec.parity import TOLERANCES
from lram_export.system.files import scratch_directory
from lram_export.targets.tvm.interface import library_file, read_interface
from lram_export.targets.tvm.platforms import PLATFORMS, host_platform, unmet

OF_TARGET, STAND_IN = "tvm", "tvm-host"


def load(artifact: LoadedArtifact, threads: int) -> Runtime:
    """All libraries of a `tvm` artifact or what represents them; raises UsageError if TVM cannot compile for here."""
    platforms = [PLATFORMS[name] for name in artifact.platforms if name in PLATFORMS]
    here = [platform for platform in platforms if unmet(platform) is None]
    elsewhere = [platform for platform in platforms if platform not in here]
    runtimes: dict[str, Runtime] = {}
    with ExitStack() as opened:  # if one cannot be loaded, the others are closed
        for platform in here:
            runtimes[platform.name] = opened.enter_context(closing(load_own_library(artifact, platform, threads)))
        for on_gpu in (False, True):
            names = [platform.name for platform in elsewhere if (platform.gpu is not None) == on_gpu]
            if names:
                representative = _load_representative(artifact, on_gpu, threads)
                runtimes[", ".join(names)] = opened.enter_context(closing(representative))
        opened.pop_all()
    return Together(runtimes, [platform.name for platform in elsewhere])


def _load_representative(artifact: LoadedArtifact, on_gpu: bool, threads: int) -> Runtime:
    platform, interface = host_platform(), read_interface(artifact.directory)
    if on_gpu:
        platform = dataclasses.replace(platform, lanes=1, memory_columns=gpu.COLUMNS, dot=None)
    with gpu.emulate() if on_gpu else nullcontext():
        kernels = gpu if on_gpu else cpu
        module = build_step(
            read_model(artifact.model, artifact.directory.parent),
            artifact.required_task,
            artifact.spec,
            interface,
            platform,
            kernels,
        )
    with scratch_directory() as folder:  # a library that is loaded needs its file no more
        path = folder / library_file(platform.name)
        build_library(module, platform, path)
        return load_library(artifact, interface, path, platform, threads)


class Together:
    """Runtimes of one artifact that step side by side; the outputs and the state are the first one's.

    Attributes:
        verified_as: who verifies: the target itself, if every library is there, else its stand-in.
        verified_for: the platforms for which the stand-in stood, in words; "" if for none.
    """

    def __init__(self, runtimes: Mapping[str, Runtime], elsewhere: Sequence[str]) -> None:
        self._runtimes = dict(runtimes)
        self.verified_as = STAND_IN if elsewhere else OF_TARGET
        self.verified_for = f"for {', '.join(elsewhere)}" if elsewhere else ""
        self._first = next(iter(self._runtimes.values()))
        self.spec = self._first.spec

    def step(self, *inputs: NDArray[np.generic]) -> StepOutput:
        """See :class:`~lram_export.runtimes.protocol.Runtime`; raises LramError where two do not agree."""
        outputs = {name: runtime.step(*inputs) for name, runtime in self._runtimes.items()}
        (name, first), *others = outputs.items()
        for other, output in others:
            error = float(np.linalg.norm(output.action_logits - first.action_logits))
            bound = 2 * TOLERANCES["quantized"].logit * float(np.linalg.norm(first.action_logits)) + 1e-4
            if not error <= bound:
                raise LramError(f"tvm: kernels for {name} and for {other} disagree: logits {error:.3g} apart")
        return first

    def settle(self) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        for runtime in self._all():
            runtime.settle()

    def state(self) -> State:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        return self._first.state()

    def load_state(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        for runtime in self._all():
            runtime.load_state(state)

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        chosen = check_rows(rows, self.spec.batch_size)
        for runtime in self._all():
            runtime.reset(chosen)

    def close(self) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        for runtime in self._all():
            runtime.close()

    def _all(self) -> Iterator[Runtime]:
        return iter(self._runtimes.values())
