"""Recordings that quantization is calibrated on, and what they say about the inputs of the large matrices.

Recordings are run as rollouts, with the recurrent state: what a matrix sees depends on the state, and isolated
inputs would calibrate for a state the policy is never in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from lram_export.describe import counted
from lram_export.episodes.batches import batch_episodes, split_episodes
from lram_export.episodes.steps import StepSequence, joined, load_steps
from lram_export.errors import LramError
from lram_export.model.graph import Graph
from lram_export.progress import Advance
from lram_export.quantization.stagewise import run_stage, stages
from lram_export.spec.tensors import StepSpec
from lram_export.system.files import file_sha256

HELD_OUT = 3
"""Every third episode is not calibrated on: it tells what quantization cost."""


@dataclass(frozen=True)
class Calibration:
    """Recorded episodes, and the SHA-256 of the files they came from."""

    episodes: tuple[StepSequence, ...]
    sha256: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Number of environment steps."""
        return sum(len(e) for e in self.episodes)

    def split(self) -> tuple[Calibration, Calibration]:
        """Episodes to calibrate on, and episodes to judge by. With too few of them, both are all."""
        if len(self.episodes) < HELD_OUT:
            return self, self
        held_out = self.episodes[HELD_OUT - 1 :: HELD_OUT]
        kept = tuple(e for i, e in enumerate(self.episodes) if i % HELD_OUT != HELD_OUT - 1)
        return Calibration(kept, self.sha256), Calibration(held_out, self.sha256)

    def thirds(self) -> tuple[Calibration, Calibration, Calibration]:
        """Episodes to calibrate on, to choose by, and to judge the choice by: each in one of them, the last as held
        out by :meth:`split`."""
        parts = (Calibration(self.episodes[i::HELD_OUT], self.sha256) for i in range(HELD_OUT))
        calibrate, choose, judge = parts
        return calibrate, choose, judge

    def at_most(self, steps: int) -> Calibration:
        """Evenly chosen episodes of about as many steps."""
        keep = max(1, round(len(self.episodes) * min(1.0, steps / max(self.steps, 1))))
        chosen = np.linspace(0, len(self.episodes) - 1, keep).round().astype(int)
        return Calibration(tuple(self.episodes[i] for i in chosen), self.sha256)

    def as_rows(self, steps: int, rows: int) -> StepSequence:
        """(``steps``, ``rows``, ...): all episodes in a row, over and over, every row from another place."""
        stream = joined(self.episodes, np.concatenate)
        starts = np.arange(rows) * self.steps // rows
        places = (starts[None, :] + np.arange(steps)[:, None]) % self.steps
        chosen = stream.map(lambda values: values[places])
        chosen["is_first"][0] = 1.0  # every row starts from the initial state
        return chosen


def load_calibration(paths: Sequence[str | Path], spec: StepSpec) -> Calibration:
    """Read recordings of `lram-export record`; raises LramError naming file and array."""
    recordings = [load_steps(path, spec) for path in paths]
    return Calibration(tuple(split_episodes(recordings)), tuple(file_sha256(Path(path)) for path in paths))


def check_enough(calibration: Calibration, graph: Graph, names: Sequence[str]) -> None:
    """Raise LramError, saying how many steps are needed, if a matrix has more inputs than it was shown vectors."""
    needed, widest = 0, ""
    for name, (per_step, inputs) in _seen_per_step(graph, names, calibration).items():
        steps = math.ceil(inputs / per_step)
        if steps > needed:
            needed, widest = steps, f"{name} has {inputs} inputs and sees {counted(per_step, 'vector')} per step"
    if calibration.steps < needed:
        raise LramError(
            f"--calibration: {calibration.steps} steps to calibrate on, at least {needed} are needed ({widest}); "
            f"record more"
        )


def _seen_per_step(graph: Graph, names: Sequence[str], calibration: Calibration) -> dict[str, tuple[int, int]]:
    """How many vectors of how many inputs every matrix is given at a step of one row."""
    first = batch_episodes([calibration.episodes[0].map(lambda values: values[:1])])
    streams: Sequence[Tensor | None] = [None]
    found: dict[str, tuple[int, int]] = {}
    for stage in stages(graph, names):
        streams, seen = run_stage(stage, graph, first, streams, stage.matrices)
        found |= {name: (int(x.shape[0]), int(x.shape[1])) for name, x in seen.items()}
    return found


@dataclass(frozen=True)
class InputStatistics:
    """What is known of a matrix's inputs x, where an unquantized model has inputs x0.

    ``second_moment`` (in, in) is the sum of x x^T, ``shift`` (in, in) that of (x0 - x) x^T, None if they are
    the same.
    """

    second_moment: Tensor
    shift: Tensor | None = None

    @staticmethod
    def of(x: Tensor, unquantized: Tensor | None = None) -> InputStatistics:
        """Of vectors (n, in)."""
        return InputStatistics(x.T @ x, None if unquantized is None else (unquantized - x).T @ x)


def input_statistics(
    graph: Graph, names: Sequence[str], calibration: Calibration, advance: Advance = lambda amount: None
) -> dict[str, InputStatistics]:
    """Statistics of the inputs of the named matrices in a graph as it is; ``advance`` is told of every stage."""
    batches = batch_episodes(calibration.episodes)
    found: dict[str, InputStatistics] = {}
    streams: Sequence[Tensor | None] = [None] * len(batches)
    for stage in stages(graph, names):
        streams, seen = run_stage(stage, graph, batches, streams, stage.matrices)
        found |= {name: InputStatistics.of(x) for name, x in seen.items()}
        advance(1)
    return found
