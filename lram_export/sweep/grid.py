"""The grid of a sweep: which cells there are, which are possible, and what is known of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lram_export.benchmark.bench import DEFAULT_STEPS as BENCH_STEPS
from lram_export.episodes import intervals
from lram_export.episodes.intervals import Estimate, Mean
from lram_export.episodes.steps import DEFAULT_STEPS as REFERENCE_STEPS
from lram_export.errors import UsageError
from lram_export.exporters import EXPORTERS
from lram_export.rollouts.results import EpisodeResult
from lram_export.runtimes import RUNTIMES, unavailable
from lram_export.spec.cost import QuantizationCost
from lram_export.spec.parity import ParityResult
from lram_export.spec.precision import PRECISIONS, calibrated
from lram_export.targets.registry import load_target

DEFAULT_PRECISIONS = ("fp32", "int8", "int4")
NEEDS_CALIBRATION = "needs --calibration"


@dataclass(frozen=True)
class Cell:
    """One cell of the grid."""

    precision: str
    target: str

    def __str__(self) -> str:
        return f"{self.precision} {self.target}"


@dataclass(frozen=True)
class SweepOptions:
    """The grid, and how its cells are made and judged.

    Attributes:
        targets: columns of the grid.
        precisions: its rows; each becomes one bundle.
        keep_fp32: patterns of matrices to leave in float32.
        calibration: recordings to calibrate on.
        recordings: steps over which the cells are compared with the float32 reference; without, the episodes that
            calibration held out, or the random steps a bundle records.
        batch_size: rows per step.
        reference_steps: steps recorded in every bundle.
        bench_steps: timed steps per cell.
        threads: of every runtime; None: what suits the model, one step at a time or in closed loop.
        environments: ``family/task`` to play in, if any.
        episodes: per environment and cell.
        seed: of the first episode.
        parallel: processes that play at the same time.
    """

    targets: Sequence[str]
    precisions: Sequence[str] = DEFAULT_PRECISIONS
    keep_fp32: Sequence[str] = ()
    calibration: Sequence[str | Path] = ()
    recordings: Sequence[str | Path] = ()
    batch_size: int = 1
    reference_steps: int = REFERENCE_STEPS
    bench_steps: int = BENCH_STEPS
    threads: int | None = None
    environments: Sequence[str] = ()
    episodes: int = 10
    seed: int = 0
    parallel: int = 1

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The whole grid, precision by precision."""
        return tuple(Cell(p, t) for p in self.precisions for t in self.targets)


@dataclass(frozen=True)
class CellResult:
    """What is known of one cell; what could not be found out is None or missing.

    ``impossible`` says why the target cannot run the precision; ``failures`` why a step gave nothing, by step.
    ``size`` in bytes is what the target reads: its own files and, where it uses them, the bundle's shared codes.
    ``parity`` compares with the oracle of the precision, ``disagreement`` with the float32 reference. ``speed``
    has the fields of :class:`~lram_export.benchmark.bench.BenchResult` and the ``bandwidth`` of the run;
    ``episodes`` are those played, by environment.
    """

    cell: Cell
    impossible: str | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None
    parity: ParityResult | None = None
    disagreement: QuantizationCost | None = None
    speed: Mapping[str, Any] | None = None
    episodes: Mapping[str, Sequence[EpisodeResult]] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """`not possible`, `failed` or `done`."""
        return "not possible" if self.impossible else "failed" if self.failures else "done"

    def success(self, *environments: str) -> Estimate | None:
        """Rate of successful episodes in some environments (default: all); None if none of them tells."""
        played = [e for name in environments or self.episodes for e in self.episodes.get(name, ())]
        known = [e.success for e in played if e.success is not None]
        return intervals.success_rate(sum(known), len(known)) if known else None

    def mean_return(self, environment: str) -> Mean | None:
        """Mean return in an environment; None if nothing was played there."""
        played = [e.episode_return for e in self.episodes.get(environment, ())]
        return intervals.mean(played) if played else None


def installed_targets() -> tuple[str, ...]:
    """Targets that can be exported and run here, without `pytorch`, which is the reference."""
    return tuple(
        name
        for name, exporter in EXPORTERS.items()
        if name != "pytorch" and exporter.missing() is None and unavailable(name) is None
    )


def check_options(options: SweepOptions) -> None:
    """Raise UsageError, naming the option, unless the grid is one that can be swept here."""
    for option, chosen, known in (
        ("--targets", options.targets, tuple(EXPORTERS)),
        ("--precisions", options.precisions, tuple(PRECISIONS)),
    ):
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise UsageError(f"{option}: expected some of {', '.join(known)}, got '{unknown[0]}'")
        if not chosen or len(set(chosen)) != len(chosen):
            raise UsageError(f"{option}: expected one or more different names, got '{','.join(chosen)}'")
    for target in options.targets:  # exported, verified and timed here: both sides must be installed
        load_target(EXPORTERS, target)
        load_target(RUNTIMES, target)
    reasons = [impossible(cell, options) for cell in options.cells]
    if all(reasons):
        raise UsageError(f"--precisions: no cell of this grid is possible: {reasons[0]}")
    for option, paths in (("--calibration", options.calibration), ("--recording", options.recordings)):
        missing = [path for path in paths if not Path(path).is_file()]
        if missing:
            raise UsageError(f"{option}: {missing[0]}: no such file; make one with lram-export record")
    if options.calibration and not any(calibrated(precision) for precision in options.precisions):
        raise UsageError(f"--calibration: there is nothing to calibrate at {', '.join(options.precisions)}")


def impossible(cell: Cell, options: SweepOptions) -> str | None:
    """Why a target cannot run a precision, whatever the model; None if it can."""
    runs = EXPORTERS[cell.target].precisions
    if cell.precision not in runs:
        return f"{cell.target} runs {', '.join(p for p in runs if p in PRECISIONS)}"
    if PRECISIONS[cell.precision].quantized_activations and not options.calibration:
        return f"{cell.precision} {NEEDS_CALIBRATION}"
    return None
