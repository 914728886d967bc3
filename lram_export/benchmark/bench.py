"""`lram-export bench`: how long an environment step takes, and how far that is from the memory's speed.

Every target runs in a process of its own (its memory and load time are its own), and so does the probe of
the machine. The processes take turns in short windows, so that a machine whose speed swings treats all alike: ratios
of medians from one run can be compared, milliseconds from different runs cannot.

A window warms up, then times whole ``Policy.act`` calls with a monotonic clock. Before the first window a target
replays the bundle's recorded steps, so that only right results are timed; after the last, its state must have
moved and be finite.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.benchmark.worker import BASELINE, Job, ProbeJob, StepJob, WorkerReport, serve
from lram_export.bundle.bundle import Bundle
from lram_export.checkpoints.loading import CheckpointSource
from lram_export.errors import LramError
from lram_export.progress import SILENT, Progress
from lram_export.spec.parity import FLOAT32, STATE_FORMATS, ParityResult
from lram_export.system.huge_pages import MemoryOfPolicy
from lram_export.system.load import LoadWatch, MachineLoad
from lram_export.system.processes import interrupts_held
from lram_export.verification.verify import installed_targets

DEFAULT_STEPS, WINDOWS = 1000, 10
BASELINE_WINDOW_SECONDS = 4.0
"""The baseline is two orders slower than the targets: its windows end after this time, however few its steps."""

SPARE_CPUS, STEAL_LIMIT, SPREAD_LIMIT = 0.25, 0.05, 1.7
"""Work of others that still leaves the timed threads their cores, in CPUs; share of steal; and how far windows may lie
apart: the memory of a shared machine alone swings by 1.7."""


@dataclass(frozen=True)
class BenchOptions:
    """What to time: number of timed steps, threads, and for a paced loop its rate in Hz.

    ``baseline_source`` is the checkpoint the baseline runs; default: the bundle's own, or random weights. ``profile``:
    also where the time of a step goes, for targets that can tell. ``state_formats``: the target `native` with every
    format of its state.
    """

    targets: Sequence[str]
    threads: int
    steps: int = DEFAULT_STEPS
    rate: float | None = None
    baseline: bool = False
    baseline_source: CheckpointSource | None = None
    profile: bool = False
    state_formats: bool = False


@dataclass(frozen=True)
class BenchResult:
    """One target's numbers. Times in milliseconds, memory and sizes in bytes.

    A step is timed to its action. ``free_ms`` is the median until the target has nothing left to do, which is the same
    unless it ``leaves_work``. ``floor_ms`` is ``bytes_per_step`` divided by the read bandwidth; ``floor_ratio`` is the
    median over windows of the median until free / floor, each with the bandwidth measured next to it. ``jitter`` is
    p99.9 / p50.
    ``cpu_ms`` is the processor time of a step, of all threads together: waiting in a loop counts.
    ``missed`` counts deadlines missed at the rate, and ``cpu_per_second`` is the processor time of all threads per
    second of the paced loop, its pauses included: 1 is a whole core. Both are None without a rate. ``parity`` is None
    where there was nothing to compare with. ``stages_ms`` are the milliseconds of a step in each stage, the mean of the
    threads, in a profile of a target that can tell. ``memory`` is what of a target that asks for huge pages lies in
    such. ``state_format`` is how the target keeps its state.
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
    cpu_ms: float
    parity: ParityResult | None
    cpu_per_second: float | None = None
    free_ms: float = 0.0
    leaves_work: bool = False
    stages_ms: dict[str, float] | None = None
    memory: MemoryOfPolicy | None = None
    state_format: str = FLOAT32


@dataclass(frozen=True)
class BenchReport:
    """All targets of one run, and measured among them the read bandwidth (bytes per second) and what matrix products
    reach (multiplications of float32 per second).

    ``load`` is what others did meanwhile; ``warnings`` say in a line each why times and ratios are not to be relied on.
    ``samples`` are the seconds of every timed step, in the order of the results.
    """

    bandwidth: float
    bandwidth_range: tuple[float, float]
    products: float
    products_range: tuple[float, float]
    results: tuple[BenchResult, ...]
    load: MachineLoad
    warnings: tuple[str, ...] = ()
    samples: tuple[NDArray[np.float64], ...] = ()


@dataclass(frozen=True)
class Contender:
    """What is timed beside others: a target of a bundle, or the baseline on the model of a bundle; ``state_format`` is
    how the target `native` keeps its state, "" as the artifact and the environment have it."""

    name: str
    bundle: Bundle
    target: str
    state_format: str = ""


Failed = Callable[[Contender, LramError], None]
"""Told of a contender that failed; may raise."""


def timed_targets(bundle: Bundle, requested: Sequence[str]) -> list[str]:
    """The requested targets, or all that are installed here but the reference, if there is another.

    Raises:
        UsageError: as :func:`~lram_export.verification.verify.installed_targets`.
    """
    chosen = installed_targets(bundle, requested)
    contenders = [target for target in chosen if target != "pytorch"]
    return chosen if requested or not contenders else contenders


def bench(bundle: Bundle, options: BenchOptions, progress: Progress = SILENT) -> BenchReport:
    """Time targets of a bundle side by side.

    Raises:
        UsageError: a target is not in the bundle or not installed; the baseline lacks packages.
        LramError: a target failed, gave wrong outputs or did not advance its state.
    """
    names = [*options.targets, *([BASELINE] if options.baseline else [])]
    contenders = [Contender(name, bundle, name) for name in names]
    if options.state_formats:
        contenders = [format_of for contender in contenders for format_of in _every_state_format(contender)]
    return bench_together(contenders, options, progress)


def _every_state_format(contender: Contender) -> list[Contender]:
    if contender.target != "native":
        return [contender]
    return [dataclasses.replace(contender, name=f"native {f}", state_format=f) for f in STATE_FORMATS]


def bench_together(
    contenders: Sequence[Contender], options: BenchOptions, progress: Progress = SILENT, failed: Failed | None = None
) -> BenchReport:
    """Time targets of several bundles side by side, so that ratios between bundles mean something, too.

    ``options.targets`` and ``options.baseline`` are not looked at. With ``failed``, a contender that fails is
    told to it and left out, and the others go on; the results are in the order of those that did not fail.

    Raises:
        UsageError, LramError: as :func:`bench`, without ``failed``; with it, only if the probe of the machine fails.
    """
    runs = [_Run(contender, options, failed) for contender in contenders]
    bandwidths: list[float] = []
    products: list[float] = []
    watch = LoadWatch()
    with ExitStack() as stack:
        probe = stack.enter_context(_worker(ProbeJob(options.threads)))
        for run in runs:
            with progress.stage(f"loading {run.contender.name}"), run.attempt():
                run.load(stack)
        per_window = _split(options.steps, WINDOWS)
        with progress.stage("measuring", len(per_window) * len(runs)) as advance:
            for steps in per_window:
                bandwidths.append(probe.ask("bandwidth"))
                products.append(probe.ask("products"))
                for run in runs:
                    with run.attempt():
                        run.window(steps)
                    advance(1)
        for run in runs:
            with run.attempt():
                run.finish()
    finished = [run for run in runs if run.report is not None]
    results = tuple(_result(run, options, bandwidths) for run in finished)
    samples = tuple(np.concatenate(run.windows) for run in finished)
    load = watch.stop()
    doubts = tuple(reasons_to_doubt(load, results))
    return BenchReport(*_spread(bandwidths), *_spread(products), results, load, doubts, samples)


def _spread(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The median, and the 10th and the 90th percentile."""
    low, middle, high = (float(q) for q in np.percentile(values, [10, 50, 90]))
    return middle, (low, high)


class _Run:
    """A contender's process, and what it measured. Once something failed, nothing more is attempted."""

    def __init__(self, contender: Contender, options: BenchOptions, failed: Failed | None) -> None:
        self.contender = contender
        self.windows: list[NDArray[np.float64]] = []
        self.until_free: list[NDArray[np.float64]] = []
        self.missed = 0
        self.cpu_seconds = self.wall_seconds = 0.0
        self.report: WorkerReport | None = None
        self._options, self._failed = options, failed
        self._worker: _Worker | None = None
        self._broken = False

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """The block may fail, if somebody wants to know of it."""
        try:
            yield
        except LramError as error:
            if self._failed is None:
                raise
            self._broken = True
            self._failed(self.contender, error)

    def load(self, stack: ExitStack) -> None:
        """Start the process, which ends with the stack, and wait until it can step."""
        bundle, target, options = self.contender.bundle, self.contender.target, self._options
        source = options.baseline_source if target == BASELINE else None
        job = StepJob(
            target,
            str(bundle.path),
            options.threads,
            options.rate,
            source,
            options.profile,
            self.contender.state_format,
        )
        self._worker = stack.enter_context(_worker(job))

    def window(self, steps: int) -> None:
        """Time some steps."""
        if self._worker is not None and not self._broken:
            limit = BASELINE_WINDOW_SECONDS if self.contender.target == BASELINE else None
            window = self._worker.ask("window", steps, limit)
            self.windows.append(window.seconds)
            self.until_free.append(window.until_free)
            self.missed += window.missed
            self.cpu_seconds += window.cpu_seconds
            self.wall_seconds += window.wall_seconds

    def finish(self) -> None:
        """Ask for what the process knows besides times."""
        if self._worker is not None and not self._broken:
            self.report = self._worker.ask("finish")


def _result(run: _Run, options: BenchOptions, bandwidths: list[float]) -> BenchResult:
    name, bundle, report = run.contender.target, run.contender.bundle, run.report
    assert report is not None
    seconds = np.concatenate(run.windows)
    p50, p90, p99, p999 = (float(q) for q in np.percentile(seconds, [50, 90, 99, 99.9]))
    medians = [float(np.median(w)) for w in run.windows]
    free = [float(np.median(w)) for w in run.until_free]
    manifest = bundle.manifest
    entry = None if name == BASELINE else bundle.artifact(name)
    weight_bytes = 4 * manifest.parameters if entry is None else entry.weight_bytes  # the original's are float32
    # every weight once, every state tensor once in and once out
    moved = weight_bytes + 2 * manifest.spec.state_bytes
    ratios = [m * bandwidth / moved for m, bandwidth in zip(free, bandwidths, strict=True)]
    return BenchResult(
        target=name,
        precision="fp32" if entry is None else entry.precision,
        weights=report.weights,
        threads=report.threads,
        batch_size=manifest.batch_size,
        steps=len(seconds),
        size=0 if entry is None else bundle.artifact_size(name),
        p50_ms=1e3 * p50,
        p90_ms=1e3 * p90,
        p99_ms=1e3 * p99,
        p999_ms=1e3 * p999,
        max_ms=1e3 * float(seconds.max()),
        jitter=p999 / p50,
        missed=None if options.rate is None else run.missed,
        load_ms=1e3 * report.load_seconds,
        first_step_ms=1e3 * report.first_step_seconds,
        peak_memory=report.peak_memory,
        bytes_per_step=moved,
        floor_ms=1e3 * moved / float(np.median(bandwidths)),
        floor_ratio=float(np.median(ratios)),
        window_p50_ms=tuple(1e3 * m for m in medians),
        cpu_ms=1e3 * run.cpu_seconds / len(seconds),
        parity=report.parity,
        cpu_per_second=None if options.rate is None else run.cpu_seconds / run.wall_seconds,
        free_ms=1e3 * float(np.median(np.concatenate(run.until_free))),
        leaves_work=report.leaves_work,
        stages_ms=None if report.stages is None else {name: 1e3 * s for name, s in report.stages.items()},
        memory=report.memory,
        state_format=report.state_format,
    )


def reasons_to_doubt(load: MachineLoad, results: Sequence[BenchResult]) -> list[str]:
    """Why times and ratios of a run are not to be relied on, a line each; empty if nothing speaks against them."""
    reasons = []
    threads = max((result.threads for result in results), default=1)
    if load.others is not None and load.others > load.cpus - threads + SPARE_CPUS:
        reasons.append(
            f"others used {load.others:.1f} of {load.cpus} CPUs beside {threads} timed threads: "
            "times and ratios are worthless; run it again when the machine is idle"
        )
    if load.steal is not None and load.steal > STEAL_LIMIT * load.cpus:
        reasons.append(f"the host gave {load.steal:.1f} of {load.cpus} CPUs to other machines: ratios are worthless")
    for result in results:
        low, high = np.percentile(result.window_p50_ms, [10, 90])
        if high > SPREAD_LIMIT * low:
            reasons.append(
                f"{result.target} {result.precision}: windows differ, p50 from {low:.3g} to {high:.3g} ms: "
                "its ratios are worthless"
            )
        elif result.p90_ms > 2 * SPREAD_LIMIT * result.p50_ms:
            reasons.append(
                f"{result.target} {result.precision}: p90 is {result.p90_ms / result.p50_ms:.1f} times p50: "
                "something interrupts it"
            )
    return reasons


def _split(steps: int, parts: int) -> list[int]:
    return [len(part) for part in np.array_split(np.arange(steps), min(parts, steps))]


class _Worker:
    """The parent's side of a worker process."""

    def __init__(self, name: str, process: Any, connection: Connection) -> None:
        self._name, self._process, self._connection = name, process, connection

    def ask(self, *message: object) -> Any:
        """Send a request and wait for its answer; raises LramError with what went wrong there."""
        try:
            self._connection.send(message)
        except BrokenPipeError:
            raise self._died() from None
        return self.answer()

    def answer(self) -> Any:
        try:
            ok, answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._died() from None
        if not ok:
            raise answer
        return answer

    def _died(self) -> LramError:
        return LramError(f"{self._name}: the process died (out of memory?)")


@contextmanager
def _worker(job: Job) -> Iterator[_Worker]:
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=serve, args=(child, job), daemon=True)
    with _environment("OPENBLAS_NUM_THREADS", "1"), interrupts_held():  # the probe's threads are its own
        process.start()
    child.close()
    worker = _Worker(job.name, process, parent)
    try:
        worker.answer()  # loaded
        yield worker
    except BaseException:
        process.kill()  # whatever it was asked, nobody waits for the answer
        raise
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
