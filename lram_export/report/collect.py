"""What a report shows: what the manifest knows, and what is measured for it on this machine."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lram_export.benchmark import BenchOptions, BenchResult, Contender, bench_together
from lram_export.bundle import Bundle
from lram_export.errors import LramError, UsageError
from lram_export.machine import cpu_model, physical_cores
from lram_export.manifest import ArtifactEntry
from lram_export.parity import ParityMeter
from lram_export.progress import SILENT, Advance, Progress
from lram_export.reference import StepSequence, random_steps
from lram_export.runtimes import Runtime, StepOutput, load_runtime, unavailable
from lram_export.verify import load_bundle_reference, parity_meter

if TYPE_CHECKING:
    from lram_export.checkpoint import Checkpoint

Floats = NDArray[np.float64]
SIGNED_ERRORS = 20_000
"""Most logit errors that are kept for their distribution."""
STATE_EVERY = 4
"""Steps between two looks at the state."""


@dataclass(frozen=True)
class ReportOptions:
    """How to fill a report.

    Attributes:
        steps: compared with a checkpoint, and timed per target; without a checkpoint the bundle's recorded steps are
            compared.
        rate: of the control loop, in Hz, for the deadline.
        measure: whether to run anything; without it the report has what the manifest has.
        time: whether to time the targets.
        threads: of the targets.
    """

    steps: int = 500
    rate: float | None = None
    measure: bool = True
    time: bool = True
    threads: int = field(default_factory=physical_cores)


@dataclass(frozen=True)
class Errors:
    """A target beside its oracle over N steps.

    Attributes:
        largest: (N,) largest absolute error of an action logit of a step.
        relative: (N,) relative error (2-norm) of a step's logits.
        signed: errors of single logits, a sample.
        gaps, differences: per action value, (N * actions,): how far apart the oracle's two best logits were, and the
            largest error of a logit of that action.
        different: per action value, whether another action was chosen.
        state_steps, state_norm, oracle_norm: 2-norm of the matrix memory C (of y without mLSTM blocks) after some
            steps; the oracle's is empty where its state was not at hand.
    """

    largest: Floats
    relative: Floats
    signed: Floats
    gaps: Floats
    differences: Floats
    different: NDArray[np.bool_]
    state_steps: NDArray[np.int64]
    state_norm: Floats
    oracle_norm: Floats

    @property
    def agreement(self) -> float:
        """Share of the action values that are the oracle's."""
        return 1.0 - float(self.different.mean())


@dataclass(frozen=True)
class Row:
    """One target of one bundle: what the manifest says, and what was measured; None where it was not.

    ``failures`` are the bounds that were exceeded in this measurement, as :meth:`ParityResult.failures` says them.
    """

    bundle: str
    entry: ArtifactEntry
    why_not_run: str | None = None
    why_not_timed: str | None = None
    failures: tuple[str, ...] = ()
    errors: Errors | None = None
    timing: BenchResult | None = None
    seconds: Floats | None = None
    closed_loop: str | None = None

    @property
    def label(self) -> str:
        """Target and precision."""
        return f"{self.entry.target} {self.entry.precision}"


@dataclass(frozen=True)
class Report:
    """Everything the page shows. ``compared`` says what the errors were measured over."""

    bundle: Bundle
    rows: tuple[Row, ...]
    options: ReportOptions
    compared: str
    bandwidth: float | None
    cpu: str
    created: str


def collect(
    bundle: Bundle,
    others: Sequence[Bundle] = (),
    options: ReportOptions | None = None,
    checkpoint: Checkpoint | None = None,
    evaluation: Path | None = None,
    progress: Progress = SILENT,
) -> Report:
    """Measure what can be measured here.

    Args:
        bundle: what the report is about.
        others: bundles of the same policy at other precisions, which the tables and the choice show beside it.
        options: what to run.
        checkpoint: whose PyTorch model every step is compared with; without one the bundle's recorded steps are.
        evaluation: JSON of `lram-export evaluate --json`.
        progress: told about every stage.

    Raises:
        UsageError: a checkpoint of another model, or an evaluation that is none.
        BundleError: a damaged bundle.
    """
    options = options or ReportOptions()
    _check_same_policy(bundle, others)
    success = {} if evaluation is None else read_evaluation(evaluation)
    ours = {(entry.target, entry.precision) for entry in bundle.manifest.artifacts}
    if success and not ours & set(success):
        raise UsageError(f"{evaluation}: has nothing about a target of {bundle.path} at its precision")
    rows: list[Row] = []
    for each in (bundle, *others):
        each.check_files()
        for entry in each.manifest.artifacts:
            reason = unavailable(entry.target, each.load_artifact(entry.target)) if options.measure else "not measured"
            closed_loop = success.get((entry.target, entry.precision)) if each is bundle else None
            rows.append(Row(str(each.path), entry, reason, closed_loop=closed_loop))
    if options.measure:
        rows = _with_errors([bundle, *others], rows, options, checkpoint, progress)
    bandwidth = None
    if options.measure and options.time:
        rows, bandwidth = _with_times(rows, options, progress)
    steps = len(load_bundle_reference(bundle).inputs) if checkpoint is None else options.steps
    over = "recorded steps of the reference model" if checkpoint is None else "fresh steps beside the PyTorch model"
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    compared = f"{steps} {over}" if options.measure else "nothing: the targets were not run for this report"
    return Report(bundle, tuple(rows), options, compared, bandwidth, cpu_model(), now.isoformat())


def of_export(bundle: Bundle, recorders: Mapping[str, Recorder]) -> Report:
    """The report that an export writes: what its verification saw, and no times."""
    reference = load_bundle_reference(bundle)
    nothing: Floats = np.zeros(0)
    rows = [
        Row(
            str(bundle.path),
            entry,
            errors=recorders[entry.target].errors(reference.action, reference.action_logits, nothing),
        )
        for entry in bundle.manifest.artifacts
    ]
    compared = f"{len(reference.inputs)} recorded steps of the reference model, at export"
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    return Report(bundle, tuple(rows), ReportOptions(time=False), compared, None, cpu_model(), now.isoformat())


def _check_same_policy(bundle: Bundle, others: Sequence[Bundle]) -> None:
    """Raise UsageError unless the others are other bundles of the same checkpoint."""
    seen = {bundle.path.resolve()}
    for other in others:
        if other.path.resolve() in seen:
            raise UsageError(f"--also: {other.path} is given twice")
        seen.add(other.path.resolve())
        if other.manifest.source.get("sha256") != bundle.manifest.source.get("sha256"):
            raise UsageError(f"--also: {other.path} is of another checkpoint than {bundle.path}")


def read_evaluation(path: Path) -> dict[tuple[str, str], str]:
    """(target, precision) -> its success in closed loop, in words, from `evaluate --json`; raises UsageError."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        found: dict[tuple[str, str], list[str]] = {}
        for result in results:
            success = result["success"]
            words = "no measure of success" if success is None else f"{100 * float(success['value']):.0f}%"
            key = str(result["policy"]), str(result["precision"])
            found.setdefault(key, []).append(f"{result['environment']}: {words}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: expected the JSON of lram-export evaluate --json ({error})") from None
    return {policy: ", ".join(lines) for policy, lines in found.items()}


def _with_errors(
    bundles: Sequence[Bundle],
    rows: list[Row],
    options: ReportOptions,
    checkpoint: Checkpoint | None,
    progress: Progress,
) -> list[Row]:
    filled = []
    oracles = {str(b.path): _Oracle(b, options, checkpoint) for b in bundles}
    by_path = {str(b.path): b for b in bundles}
    for row in rows:
        if row.why_not_run is not None:
            filled.append(row)
            continue
        bundle = by_path[row.bundle]
        try:
            runtime = load_runtime(row.entry.target, bundle.load_artifact(row.entry.target), options.threads)
        except LramError as error:
            filled.append(dataclasses.replace(row, why_not_run=str(error)))
            continue
        oracle = oracles[row.bundle]
        try:
            with progress.stage(f"comparing {row.label}", len(oracle.inputs)) as advance:
                meter = parity_meter(bundle, row.entry.target, runtime)
                errors = compare(runtime, oracle, meter, advance)
        finally:
            runtime.close()
        filled.append(dataclasses.replace(row, errors=errors, failures=tuple(meter.result().failures())))
    return filled


class _Oracle:
    """Inputs, and what the oracle answers to them: recorded, or computed once from a checkpoint."""

    def __init__(self, bundle: Bundle, options: ReportOptions, checkpoint: Checkpoint | None) -> None:
        self.inputs: StepSequence
        if checkpoint is None:
            reference = load_bundle_reference(bundle)
            self.inputs, self.actions, self.logits = reference.inputs, reference.action, reference.action_logits
            self.norms: Floats = np.zeros(0)
            return
        manifest = bundle.manifest
        if checkpoint.config != manifest.model:
            raise UsageError(f"{checkpoint.path}: not the architecture this bundle was exported from")
        self.inputs = random_steps(manifest.spec, manifest.task, options.steps, seed=1, episode=max(options.steps, 2))
        self.actions, self.logits, self.norms = _answers(bundle, checkpoint, self.inputs)


def _answers(bundle: Bundle, checkpoint: Checkpoint, inputs: StepSequence) -> tuple[Any, Any, Floats]:
    """The oracle's actions, logits and state norms: the PyTorch model, dequantized where the bundle is quantized."""
    from lram_export.dequantization import dequantized_checkpoint
    from lram_export.model import ReferenceModel, oracle_threads
    from lram_export.quantized import QuantizedFile
    from lram_export.runtimes.pytorch import PytorchRuntime

    manifest = bundle.manifest
    if manifest.quantization is not None:
        matrices = QuantizedFile(bundle.path, manifest.quantization.matrices).load()
        checkpoint = dequantized_checkpoint(checkpoint, matrices)
    runtime = PytorchRuntime(ReferenceModel.from_checkpoint(checkpoint), manifest.spec, manifest.task)
    actions, logits, norms = [], [], []
    with oracle_threads(checkpoint.config):
        for number, arguments in enumerate(inputs):
            output = runtime.step(*arguments)
            actions.append(output.action.copy())
            logits.append(output.action_logits.copy())
            if number % STATE_EVERY == 0:
                norms.append(state_norm(runtime))
    return np.stack(actions), np.stack(logits), np.array(norms)


def compare(runtime: Runtime, oracle: _Oracle, meter: ParityMeter, advance: Advance) -> Errors:
    """Step a runtime over the oracle's inputs and compare; the meter is told every step, too."""
    recorder = Recorder()
    runtime.reset()
    for arguments, action, logits in zip(oracle.inputs, oracle.actions, oracle.logits, strict=True):
        output = runtime.step(*arguments)
        meter.add_step(action, logits, output.action, output.action_logits)
        recorder.add(runtime, output)
        advance(1)
    return recorder.errors(oracle.actions, oracle.logits, oracle.norms)


class Recorder:
    """Collects what a runtime answers, step by step."""

    def __init__(self, state_every: int = STATE_EVERY) -> None:
        self._every = state_every
        self._logits: list[NDArray[np.float32]] = []
        self._actions: list[NDArray[Any]] = []
        self._steps: list[int] = []
        self._norms: list[float] = []

    def add(self, runtime: Runtime, output: StepOutput) -> None:
        """Keep a step's outputs, and now and then look at the state."""
        if len(self._logits) % self._every == 0:
            self._steps.append(len(self._logits))
            self._norms.append(state_norm(runtime))
        self._logits.append(output.action_logits.copy())
        self._actions.append(output.action.copy())

    def errors(self, actions: NDArray[Any], logits: NDArray[Any], norms: Floats) -> Errors:
        """Compare with an oracle's actions and logits, (steps, ...); ``norms`` of its state may be empty."""
        expected, actual = np.asarray(logits, np.float64), np.asarray(np.stack(self._logits), np.float64)
        difference = actual - expected
        flat = difference.reshape(len(difference), -1)
        norm = np.linalg.norm(expected.reshape(len(expected), -1), axis=1)
        per_action = difference.reshape(-1, difference.shape[-1])
        best = np.sort(expected.reshape(per_action.shape), axis=1)[:, -2:]  # twice the same where there is one
        sample = np.random.default_rng(0).permutation(flat.size)[:SIGNED_ERRORS]
        return Errors(
            largest=np.abs(flat).max(axis=1),
            relative=np.linalg.norm(flat, axis=1) / np.maximum(norm, 1e-30),
            signed=flat.reshape(-1)[sample],
            gaps=best[:, -1] - best[:, 0],
            differences=np.abs(per_action).max(axis=1),
            different=(np.stack(self._actions) != np.asarray(actions)).reshape(-1),
            state_steps=np.array(self._steps),
            state_norm=np.array(self._norms),
            oracle_norm=norms,
        )


def state_norm(runtime: Runtime) -> float:
    """2-norm of the matrix memory, or of what an sLSTM block puts out where there is no mLSTM block."""
    state = runtime.state()
    memory = [v for name, v in state.items() if name.endswith(".C")] or list(state.values())
    return float(np.sqrt(sum(float(np.square(v, dtype=np.float64).sum()) for v in memory)))


def _with_times(rows: list[Row], options: ReportOptions, progress: Progress) -> tuple[list[Row], float | None]:
    running = [row for row in rows if row.why_not_run is None]
    if not running:
        return rows, None
    contenders = [Contender(row.label, Bundle.open(row.bundle), row.entry.target) for row in running]
    reasons: list[str | None] = [None] * len(running)

    def fail(contender: Contender, error: LramError) -> None:
        reasons[contenders.index(contender)] = str(error)

    settings = BenchOptions((), options.threads, steps=options.steps, rate=options.rate)
    report = bench_together(contenders, settings, progress, fail)
    measured = iter(zip(report.results, report.samples, strict=True))
    filled = []
    for row in rows:
        if row.why_not_run is not None:
            filled.append(row)
            continue
        reason = reasons.pop(0)
        timing, seconds = (None, None) if reason is not None else next(measured)
        filled.append(dataclasses.replace(row, timing=timing, seconds=seconds, why_not_timed=reason))
    return filled, report.bandwidth
