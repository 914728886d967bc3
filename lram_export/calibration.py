"""What recorded steps say about the inputs of the large matrices: second moments for GPTQ, ranges for `w8a8`.

Recordings are run as rollouts through the float32 step graph, with its recurrent state: what a matrix sees
depends on the state, and isolated inputs would calibrate for a state the policy is never in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lram_export.config import TOKENS_PER_STEP
from lram_export.errors import LramError
from lram_export.hashing import file_sha256
from lram_export.progress import Advance
from lram_export.recording import load_steps
from lram_export.reference import StepSequence
from lram_export.rollouts import EpisodeBatch, batch_episodes, roll_out, split_episodes
from lram_export.specification import StepSpec
from lram_export.step import StepGraph


@dataclass(frozen=True)
class Calibration:
    """Recorded episodes, and the SHA-256 of the files they came from."""

    episodes: tuple[StepSequence, ...]
    sha256: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Number of environment steps."""
        return sum(len(e) for e in self.episodes)


def load_calibration(paths: Sequence[Path], spec: StepSpec) -> Calibration:
    """Read recordings of `lram-export record`; raises LramError naming file and array."""
    recordings = [load_steps(path, spec) for path in paths]
    return Calibration(tuple(split_episodes(recordings)), tuple(file_sha256(path) for path in paths))


def check_enough(calibration: Calibration, graph: StepGraph, names: Sequence[str]) -> None:
    """Raise LramError, saying how many steps are needed, if a matrix has more inputs than it was shown vectors."""
    needed, widest = 0, ""
    for name in names:
        matrix: Any = graph.get_submodule(name)
        per_step = TOKENS_PER_STEP if name.startswith("blocks.") else 1
        steps = math.ceil(matrix.weight.shape[1] / per_step)
        if steps > needed:
            needed, widest = steps, f"{name} has {matrix.weight.shape[1]} inputs and sees {per_step} vectors per step"
    if calibration.steps < needed:
        raise LramError(
            f"--calibration: {calibration.steps} steps recorded, at least {needed} are needed ({widest}); record more"
        )


@dataclass
class InputStatistics:
    """What was seen of one matrix's inputs: sum of x x^T (in, in), number of vectors, extremes."""

    second_moment: Tensor
    vectors: int = 0
    low: float = 0.0
    high: float = 0.0

    def add(self, x: Tensor) -> None:
        """Add vectors (n, in)."""
        self.second_moment.addmm_(x.T, x)
        self.vectors += len(x)
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))


@dataclass
class InputCollector:
    """Sees the inputs of some matrices of a graph while it steps; :attr:`active` rows count."""

    statistics: dict[str, InputStatistics] = field(default_factory=dict)
    active: NDArray[np.bool_] | None = None

    @contextmanager
    def attached(self, graph: StepGraph, names: Sequence[str]) -> Iterator[None]:
        """Watch the named matrices as long as the block lasts."""
        handles = []
        for name in names:
            matrix: Any = graph.get_submodule(name)
            width = matrix.weight.shape[1]
            self.statistics[name] = InputStatistics(torch.zeros(width, width))
            handles.append(matrix.register_forward_pre_hook(self._hook(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def hook(module: Any, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0]
            if self.active is not None:
                x = x[torch.from_numpy(self.active)]
            self.statistics[name].add(x.reshape(-1, x.shape[-1]))

        return hook


def input_statistics(
    graph: StepGraph, names: Sequence[str], calibration: Calibration, advance: Advance = lambda amount: None
) -> dict[str, InputStatistics]:
    """Statistics of the inputs of the named matrices over all recorded episodes."""
    collector = InputCollector()
    with collector.attached(graph, names):
        for batch in batch_episodes(calibration.episodes):
            _run(graph, batch, collector, advance)
    return collector.statistics


def _run(graph: StepGraph, batch: EpisodeBatch, collector: InputCollector, advance: Advance) -> None:
    collector.active = batch.active[0]
    steps = roll_out(graph, batch, advance)
    for number, _ in enumerate(steps, start=1):
        # the generator computes a step when it is asked for the next one
        collector.active = batch.active[min(number, len(batch.active) - 1)]
