"""`lram-export bench`: how long an environment step takes, and how far that is from the memory's speed.

Every target runs in a process of its own (its memory and load time are its own), and so does the bandwidth
probe. The processes take turns in short windows, so that a machine whose speed swings treats all alike: ratios
of medians from one run can be compared, milliseconds from different runs cannot.

A window warms up, then times whole ``Policy.act`` calls with a monotonic clock. Before the first window a target
replays the bundle's recorded steps, so that only right results are timed; after the last, its state must have
moved and be finite.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.benchmark_worker import BASELINE, BandwidthJob, Job, StepJob, WorkerReport, serve
from lram_export.bundle import Bundle
from lram_export.checkpoint import CheckpointSource
from lram_export.errors import LramError
from lram_export.parity import ParityResult
from lram_export.progress import SILENT, Progress

DEFAULT_STEPS, WINDOWS = 1000, 10
BASELINE_WINDOW_SECONDS = 4.0
"""The baseline is two orders slower than the targets: its windows end after this time, however few its steps."""


@dataclass(frozen=True)
class BenchOptions:
    """What to time: number of timed steps, threads, and for a paced loop its rate in Hz.

    ``baseline_source`` is the checkpoint the baseline runs; default: the bundle's own, or random weights.
    """

    targets: Sequence[str]
    threads: int
    steps: int = DEFAULT_STEPS
    rate: float | None = None
    baseline: bool = False
    baseline_source: CheckpointSource | None = None


@dataclass(frozen=True)
class BenchResult:
    """One target's numbers. Times in milliseconds, memory and sizes in bytes.

    ``floor_ms`` is ``bytes_per_step`` divided by the read bandwidth; ``floor_ratio`` is the median over
    windows of p50 / floor, each with the bandwidth measured next to it. ``jitter`` is p99.9 / p50.
    ``missed`` counts deadlines missed at the rate, None without one. ``parity`` is None where there was
    nothing to compare with.
    """

    target: str
    precision: str
    weights: str
    threads: int
    batch_size: int
    steps: int
    size: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    jitter: float
    missed: int | None
    load_ms: float
    first_step_ms: float
    peak_memory: int | None
    bytes_per_step: int
    floor_ms: float
    floor_ratio: float
    window_p50_ms: tuple[float, ...]
    parity: ParityResult | None


@dataclass(frozen=True)
class BenchReport:
    """All targets of one run and the read bandwidth measured among them (bytes per second)."""

    bandwidth: float
    bandwidth_range: tuple[float, float]
    results: tuple[BenchResult, ...]


def bench(bundle: Bundle, options: BenchOptions, progress: Progress = SILENT) -> BenchReport:
    """Time targets of a bundle side by side.

    Raises:
        UsageError: a target is not in the bundle or not installed; the baseline lacks packages.
        LramError: a target failed, gave wrong outputs or did not advance its state.
    """
    jobs = {t: StepJob(t, str(bundle.path), options.threads, options.rate) for t in options.targets}
    if options.baseline:
        path, source = str(bundle.path), options.baseline_source
        jobs[BASELINE] = StepJob(BASELINE, path, options.threads, options.rate, source)
    with ExitStack() as stack:
        probe = stack.enter_context(_worker(BandwidthJob(options.threads)))
        workers = {}
        for name, job in jobs.items():
            with progress.stage(f"loading {name}"):
                workers[name] = stack.enter_context(_worker(job))
        times: dict[str, list[NDArray[np.float64]]] = {name: [] for name in jobs}
        missed = dict.fromkeys(jobs, 0)
        bandwidths: list[float] = []
        per_window = _split(options.steps, WINDOWS)
        with progress.stage("measuring", len(per_window) * len(jobs)) as advance:
            for steps in per_window:
                bandwidths.append(probe.ask("measure"))
                for name, worker in workers.items():
                    limit = BASELINE_WINDOW_SECONDS if name == BASELINE else None
                    window = worker.ask("window", steps, limit)
                    times[name].append(window.seconds)
                    missed[name] += window.missed
                    advance(1)
        reports = {name: worker.ask("finish") for name, worker in workers.items()}
    results = tuple(
        _result(bundle, options, name, times[name], missed[name], reports[name], bandwidths) for name in jobs
    )
    low, middle, high = (float(q) for q in np.percentile(bandwidths, [10, 50, 90]))
    return BenchReport(middle, (low, high), results)


def _result(
    bundle: Bundle,
    options: BenchOptions,
    name: str,
    windows: list[NDArray[np.float64]],
    missed: int,
    report: WorkerReport,
    bandwidths: list[float],
) -> BenchResult:
    seconds = np.concatenate(windows)
    p50, p90, p99, p999 = (float(q) for q in np.percentile(seconds, [50, 90, 99, 99.9]))
    medians = [float(np.median(w)) for w in windows]
    manifest = bundle.manifest
    entry = None if name == BASELINE else bundle.artifact(name)
    weight_bytes = manifest.artifacts[0].weight_bytes if entry is None else entry.weight_bytes
    # every weight once, every state tensor once in and once out
    moved = weight_bytes + 2 * manifest.spec.state_bytes
    ratios = [m * bandwidth / moved for m, bandwidth in zip(medians, bandwidths, strict=True)]
    return BenchResult(
        target=name,
        precision="fp32" if entry is None else entry.precision,
        weights=report.weights,
        threads=options.threads,
        batch_size=manifest.batch_size,
        steps=len(seconds),
        size=0 if entry is None else entry.size,
        p50_ms=1e3 * p50,
        p90_ms=1e3 * p90,
        p99_ms=1e3 * p99,
        p999_ms=1e3 * p999,
        max_ms=1e3 * float(seconds.max()),
        jitter=p999 / p50,
        missed=None if options.rate is None else missed,
        load_ms=1e3 * report.load_seconds,
        first_step_ms=1e3 * report.first_step_seconds,
        peak_memory=report.peak_memory,
        bytes_per_step=moved,
        floor_ms=1e3 * moved / float(np.median(bandwidths)),
        floor_ratio=float(np.median(ratios)),
        window_p50_ms=tuple(1e3 * m for m in medians),
        parity=report.parity,
    )


def _split(steps: int, parts: int) -> list[int]:
    return [len(part) for part in np.array_split(np.arange(steps), min(parts, steps))]


class _Worker:
    """The parent's side of a worker process."""

    def __init__(self, name: str, process: Any, connection: Connection) -> None:
        self._name, self._process, self._connection = name, process, connection

    def ask(self, *message: object) -> Any:
        """Send a request and wait for its answer; raises LramError with what went wrong there."""
        self._connection.send(message)
        return self.answer()

    def answer(self) -> Any:
        try:
            ok, answer = self._connection.recv()
        except EOFError:
            raise LramError(f"{self._name}: the process died (out of memory?)") from None
        if not ok:
            raise answer
        return answer


@contextmanager
def _worker(job: Job) -> Iterator[_Worker]:
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=serve, args=(child, job), daemon=True)
    with _environment("OPENBLAS_NUM_THREADS", "1"):  # the probe's threads are its own
        process.start()
    child.close()
    worker = _Worker(job.name, process, parent)
    try:
        worker.answer()  # loaded
        yield worker
    finally:
        parent.close()  # ends the worker's loop
        process.join(timeout=5)
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
