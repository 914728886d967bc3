"""What a report shows: what the manifest knows, and what is measured for it on this machine."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lram_export.benchmark.bench import BenchOptions, BenchResult, Contender, bench_together
from lram_export.bundle.bundle import Bundle
from lram_export.bundle.manifest import ArtifactEntry
from lram_export.describe import counted
from lram_export.episodes.evaluations import ClosedLoop, read_evaluations
from lram_export.episodes.reference import Reference, sample_state, stacked
from lram_export.episodes.steps import StepSequence
from lram_export.errors import LramError, UsageError, describe
from lram_export.flight.reader import Flight, is_flight, read_flight
from lram_export.progress import SILENT, Progress
from lram_export.report.flight import FlightView, check_flight, view
from lram_export.report.flight_again import Again, take_again
from lram_export.runtimes import Runtime, StepOutput, load_runtime, unavailable
from lram_export.spec.cost import computed_values
from lram_export.spec.parity import FLOAT32, Tolerance, tolerance
from lram_export.spec.tensors import StepSpec, TensorSpec
from lram_export.system.machine import cpu_model, usable_cores
from lram_export.verification.verify import checkpoint_steps, load_bundle_reference, parity_meter, replay

if TYPE_CHECKING:
    from lram_export.lowering import LoweredPolicy, Source

Floats = NDArray[np.float64]
SIGNED_ERRORS = 20_000
"""Most logit errors that are kept for their distribution."""
STATE_EVERY = 4
"""Steps between two looks at the state."""
FLIGHT_STEPS = 10_000
"""Of a flight that are taken again: a minute or two beside PyTorch, where a night takes hours."""


@dataclass(frozen=True)
class ReportOptions:
    """How to fill a report.

    Attributes:
        steps: compared with a checkpoint, and timed per target; without a checkpoint the bundle's recorded steps are
            compared.
        recording: with a checkpoint, its steps are compared instead of random ones.
        rate: of the control loop, in Hz, for the deadline.
        measure: whether to run anything; without it the report has what the manifest has.
        time: whether to time the targets.
        threads: of the targets.
        targets: those to run; default: all that are installed but `pytorch`, the reference, if there is another.
        other_checkpoint: the checkpoint is another file than the one the bundle was exported from, and meant.
        flight: of the bundle's weights, to show and to take again; default: the recording, if that is one.
        flight_steps: of it to take again, at most; 0: none.
    """

    steps: int = 500
    recording: str | Path | None = None
    rate: float | None = None
    measure: bool = True
    time: bool = True
    threads: int = field(default_factory=usable_cores)
    targets: tuple[str, ...] = ()
    other_checkpoint: bool = False
    flight: str | Path | None = None
    flight_steps: int = FLIGHT_STEPS


@dataclass(frozen=True)
class Errors:
    """A target beside its oracle over N steps.

    Attributes:
        largest: (N,) largest error of an action logit of a step, or of a value, as the tolerance takes it.
        relative: (N,) relative error (2-norm) of a step's logits.
        signed: errors of single logits, a sample.
        gaps, differences: per action value, (N * actions,): how far apart the oracle's two best logits were, and the
            largest error of a logit of that action.
        different: per action value, whether another action was chosen.
        state_steps, state_norm, oracle_norm: 2-norm of the memory after some steps, see
            :func:`state_norm`; the oracle's is empty where its state was not at hand.
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
    def agreement(self) -> float | None:
        """Share of the action values that are the oracle's; None where none is chosen."""
        return 1.0 - float(self.different.mean()) if self.different.size else None


@dataclass(frozen=True)
class Row:
    """One target of one bundle: what the manifest says, and what was measured; None where it was not.

    Attributes:
        bundle: its path.
        entry: of the manifest.
        label: target and precision, and the bundle's name where these are not enough.
        size: bytes on disk, shared codes included.
        cost: what the precision changed against the float32 model (:class:`QuantizationCost` as JSON); None at `fp32`,
            and where the bundle does not say.
        compared_here: whether ``errors`` are of this machine, by the target's own runtime.
        state_format: in which the target keeps its state, which decides its tolerance.
        failures: bounds that were exceeded here, as :meth:`ParityResult.failures` says them.
    """

    bundle: str
    entry: ArtifactEntry
    label: str
    size: int
    cost: Mapping[str, Any] | None = None
    why_not_run: str | None = None
    why_not_timed: str | None = None
    compared_here: bool = False
    state_format: str = FLOAT32
    failures: tuple[str, ...] = ()
    errors: Errors | None = None
    timing: BenchResult | None = None
    seconds: Floats | None = None
    closed_loop: str | None = None

    @property
    def tolerance(self) -> Tolerance:
        """What `verify` holds it to."""
        return tolerance(self.entry.precision, self.entry.activations, self.state_format)

    @property
    def missed(self) -> float | None:
        """Share of the timed steps that missed their deadline; None where no rate was given."""
        return None if self.timing is None or self.timing.missed is None else self.timing.missed / self.timing.steps

    @property
    def against_float32(self) -> float | None:
        """Relative error of the logits against the float32 model, at most: what the precision cost, and the target's
        own typical error; None where one of them is not known."""
        if self.errors is None or (self.cost is None and self.entry.precision != "fp32"):
            return None
        return float(np.median(self.errors.relative)) + (self.cost["relative_error"] if self.cost else 0.0)


@dataclass(frozen=True)
class Report:
    """Everything the page shows.

    ``compared`` says what the errors were measured over, ``doubts`` why times are not to be relied on, ``flight`` what
    was in one, and what became of taking it again.
    """

    bundle: Bundle
    rows: tuple[Row, ...]
    options: ReportOptions
    compared: str
    bandwidth: float | None
    cpu: str
    created: str
    doubts: tuple[str, ...] = ()
    flight: tuple[FlightView, Again] | None = None


def collect(
    bundle: Bundle,
    others: Sequence[Bundle] = (),
    options: ReportOptions | None = None,
    checkpoint: Source | None = None,
    evaluations: Sequence[str | Path] = (),
    progress: Progress = SILENT,
) -> Report:
    """Measure what can be measured here.

    Args:
        bundle: what the report is about.
        others: bundles of the same policy at other precisions, which the tables and the choice show beside it.
        options: what to run.
        checkpoint: whose PyTorch model every step is compared with; without one the bundle's recorded steps are.
        evaluations: JSON of `lram-export evaluate --json`, of these bundles.
        progress: told about every stage.

    Raises:
        UsageError: a checkpoint of another model, or an evaluation that is none or of another bundle.
        BundleError: a damaged bundle.
        LramError: a flight that is none, or of another step or other weights.
    """
    options = options or ReportOptions()
    bundles = (bundle, *others)
    _check_same_policy(bundle, others)
    success = in_words(evaluations, {b.artifact_digest(t) for b in bundles for t in b.targets})
    flight = _flight(bundle, options)
    rows: list[Row] = []
    for each in bundles:
        each.check_files()
        for row in _rows(each, bundles):
            target = row.entry.target
            reason = _why_not_run(each, target, options)
            rows.append(
                dataclasses.replace(row, why_not_run=reason, closed_loop=success.get(each.artifact_digest(target)))
            )
    if options.measure:
        rows = _with_errors(bundles, rows, options, checkpoint, progress)
    bandwidth: float | None = None
    doubts: tuple[str, ...] = ()
    if options.measure and options.time:
        rows, bandwidth, doubts = _with_times(rows, options, progress)
    compared = "nothing: the targets were not run for this report" if not options.measure else _over(rows, checkpoint)
    flown = None if flight is None else _flown(bundle, flight, options, checkpoint, progress)
    return Report(bundle, tuple(rows), options, compared, bandwidth, cpu_model(), _now(), doubts, flown)


def _flight(bundle: Bundle, options: ReportOptions) -> Flight | None:
    """The flight to show: who compares on one wants to see it, too."""
    path = options.flight
    if path is None and options.recording is not None and is_flight(options.recording):
        path = options.recording
    if path is None:
        return None
    flight = read_flight(path)
    check_flight(bundle, flight)
    return flight


def _flown(
    bundle: Bundle, flight: Flight, options: ReportOptions, checkpoint: Source | None, progress: Progress
) -> tuple[FlightView, Again]:
    oracle = None if checkpoint is None else partial(_lowered, bundle, options, checkpoint)
    steps = options.flight_steps if options.measure else 0
    return view(bundle, flight), take_again(bundle, flight, steps, oracle, progress)


def _why_not_run(bundle: Bundle, target: str, options: ReportOptions) -> str | None:
    """Why a target is not run for this report, in a line; None if it is."""
    if not options.measure:
        return "not measured"
    if options.targets and target not in options.targets:
        return "not asked for"
    if target == "pytorch" and not options.targets and len(bundle.targets) > 1:
        return "the reference itself: run where --target pytorch asks for it"
    return unavailable(target, bundle.load_artifact(target))


def of_export(bundle: Bundle, recorders: Mapping[str, Recorder]) -> Report:
    """The report that an export writes: what its verification saw, and no times."""
    reference = load_bundle_reference(bundle)
    rows = [
        dataclasses.replace(
            row, errors=recorders[row.entry.target].errors(bundle.manifest.spec, reference, np.zeros(0))
        )
        for row in _rows(bundle, [bundle])
    ]
    compared = f"{len(reference.inputs)} recorded steps, at export"
    return Report(bundle, tuple(rows), ReportOptions(time=False), compared, None, cpu_model(), _now())


def _rows(bundle: Bundle, among: Sequence[Bundle]) -> list[Row]:
    """What the manifest says about each target; ``among`` are all bundles of the report."""
    quantization = bundle.manifest.quantization
    cost = None if quantization is None else quantization.cost
    alike = [b.path for b in among if b.manifest.precision == bundle.manifest.precision]
    named_alike = [path for path in alike if path.name == bundle.path.name]
    suffix = "" if len(alike) == 1 else f" ({bundle.path.name if len(named_alike) == 1 else bundle.path})"
    return [
        Row(
            bundle=str(bundle.path),
            entry=entry,
            label=f"{entry.target} {entry.precision}{suffix}",
            size=bundle.artifact_size(entry.target),
            cost=cost,
            state_format=FLOAT32 if entry.parity is None else entry.parity.state_format,
        )
        for entry in bundle.manifest.artifacts
    ]


def _over(rows: Sequence[Row], checkpoint: Source | None) -> str:
    steps = sorted({len(row.errors.largest) for row in rows if row.errors is not None})
    over = "recorded steps" if checkpoint is None else "steps beside the PyTorch model"
    return f"{' or '.join(map(str, steps)) or 'no'} {over}"


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0).isoformat()


def _check_same_policy(bundle: Bundle, others: Sequence[Bundle]) -> None:
    """Raise UsageError unless the others are other bundles of the same checkpoint and task."""
    seen = {bundle.path.resolve()}
    for other in others:
        if other.path.resolve() in seen:
            raise UsageError(f"--also: {other.path} is given twice")
        seen.add(other.path.resolve())
        if other.manifest.source.get("sha256") != bundle.manifest.source.get("sha256"):
            raise UsageError(f"--also: {other.path} is of another checkpoint than {bundle.path}")
        if other.manifest.spec != bundle.manifest.spec or other.manifest.task != bundle.manifest.task:
            raise UsageError(f"--also: {other.path} is for another task or batch size than {bundle.path}")


def in_words(paths: Sequence[str | Path], known: Collection[str]) -> dict[str, str]:
    """Digest of an artifact -> its success in closed loop, in words; raises as :func:`read_evaluations`."""
    found: dict[str, list[str]] = {}
    for result in read_evaluations(paths, known):
        early = "" if result.complete else ", ended early by a failure"
        found.setdefault(result.artifact, []).append(f"{result.environment}: {_success(result)}{early}")
    return {digest: ", ".join(lines) for digest, lines in found.items()}


def _success(result: ClosedLoop) -> str:
    episodes = counted(result.episodes, "episode")
    if result.success is None:
        return f"no measure of success ({episodes})"
    value, low, high = (100 * bound for bound in result.success)
    return f"{value:.0f}% ({low:.0f} to {high:.0f}, {episodes})"


def _with_errors(
    bundles: Sequence[Bundle],
    rows: list[Row],
    options: ReportOptions,
    checkpoint: Source | None,
    progress: Progress,
) -> list[Row]:
    filled = []
    by_path = {str(b.path): (b, _oracle(b, options, checkpoint)) for b in bundles}
    for row in rows:
        if row.why_not_run is not None:
            filled.append(row)
            continue
        bundle, oracle = by_path[row.bundle]
        try:
            filled.append(_compared(row, bundle, oracle, options.threads, progress))
        except Exception as error:  # toolkits are foreign code, and the page goes on without this target
            filled.append(dataclasses.replace(row, why_not_run=describe(error)))
    return filled


def _compared(row: Row, bundle: Bundle, oracle: Oracle, threads: int, progress: Progress) -> Row:
    target, recorder = row.entry.target, Recorder()
    runtime = load_runtime(target, bundle.load_artifact(target), threads)
    try:
        with progress.stage(f"comparing {row.label}", len(oracle.reference.inputs)) as advance:
            meter = parity_meter(bundle, target, runtime, load_bundle_reference(bundle))
            replay(runtime, oracle.reference, meter, advance, recorder.add)
    finally:
        runtime.close()
    result = meter.result()
    return dataclasses.replace(
        row,
        errors=recorder.errors(bundle.manifest.spec, oracle.reference, oracle.norms),
        failures=tuple(result.failures()),
        state_format=result.state_format,
        compared_here=True,
    )


@dataclass(frozen=True)
class Oracle:
    """Inputs and what the oracle answers to them; ``norms`` of its state every :data:`STATE_EVERY` steps, or empty."""

    reference: Reference
    norms: Floats


def _oracle(bundle: Bundle, options: ReportOptions, checkpoint: Source | None) -> Oracle:
    """Recorded, or computed from a checkpoint: the PyTorch model, dequantized where the bundle is quantized."""
    if checkpoint is None:
        return Oracle(load_bundle_reference(bundle), np.zeros(0))
    from lram_export.model.reference import oracle_threads

    policy = _lowered(bundle, options, checkpoint)
    inputs = checkpoint_steps(bundle, options.recording, options.steps, seed=1)
    recorder = Recorder()
    with closing(policy.reference()) as runtime, oracle_threads(policy.parameters):
        for arguments in inputs:
            recorder.add(runtime, runtime.step(*arguments))
        return recorder.oracle(inputs, runtime)


def _lowered(bundle: Bundle, options: ReportOptions, checkpoint: Source) -> LoweredPolicy:
    """A checkpoint's policy as a bundle's targets should compute it: with the codes, if these are the checkpoint's."""
    from lram_export.verification.oracle import build_oracle

    oracle = build_oracle(bundle, checkpoint, other_checkpoint=options.other_checkpoint)
    oracle.require_codes()
    return oracle.dequantized()


class Recorder:
    """Collects what a runtime answers, step by step."""

    def __init__(self, state_every: int = STATE_EVERY) -> None:
        self._every = state_every
        self._answers: list[list[NDArray[Any]]] = []
        self._steps: list[int] = []
        self._norms: list[float] = []

    def add(self, runtime: Runtime, output: StepOutput) -> None:
        """Keep a step's outputs, and now and then look at the state."""
        if len(self._answers) % self._every == 0:
            self._steps.append(len(self._answers))
            self._norms.append(state_norm(runtime))
        self._answers.append([values.copy() for values in output])

    def oracle(self, inputs: StepSequence, runtime: Runtime) -> Oracle:
        """What was answered as what others are compared with; the runtime is that which answered."""
        answers = stacked(runtime.spec, self._answers)
        return Oracle(Reference(inputs, answers, sample_state(runtime.state())), np.array(self._norms))

    def errors(self, spec: StepSpec, reference: Reference, norms: Floats) -> Errors:
        """Compare with an oracle's answers; ``norms`` of its state may be empty."""
        actual = stacked(spec, self._answers)
        values = [output_errors(spec, place, reference.outputs, actual) for place in spec.computed]
        flat = np.concatenate([np.zeros((len(self._answers), 0)), *values], axis=1)
        expected = computed_values(spec, reference.outputs)
        decided = [_decisions(spec, output, reference.outputs, actual) for output in spec.outputs]
        gaps, differences, different = (np.concatenate(column) for column in zip(*decided, strict=True))
        sample = np.random.default_rng(0).permutation(flat.size)[:SIGNED_ERRORS]
        norm = np.linalg.norm(expected, axis=1)
        error = np.linalg.norm(computed_values(spec, actual) - expected, axis=1)
        return Errors(
            largest=np.abs(flat).max(axis=1, initial=0.0),
            relative=error / np.maximum(norm, 1e-30),
            signed=flat.reshape(-1)[sample],
            gaps=gaps,
            differences=differences,
            different=different,
            state_steps=np.array(self._steps),
            state_norm=np.array(self._norms),
            oracle_norm=norms,
        )


def output_errors(
    spec: StepSpec, place: int, expected: Mapping[str, NDArray[Any]], actual: Mapping[str, NDArray[Any]]
) -> Floats:
    """Errors with their sign of an output that is computed, (N, n), as they are compared with the tolerance."""
    name = spec.outputs[place].name
    reference, found = (np.asarray(side[name], np.float64).reshape(len(side[name]), -1) for side in (expected, actual))
    error: Floats = found - reference
    if spec.are_scores(place):
        return error
    return error / np.maximum(np.abs(reference), float(np.sqrt(np.mean(np.square(reference)))) or 1.0)


def _decisions(
    spec: StepSpec, output: TensorSpec, expected: Mapping[str, NDArray[Any]], actual: Mapping[str, NDArray[Any]]
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Of an output that is chosen from scores, per value: how far apart the oracle's two best scores were, how far the
    target's were off, and whether it chose another; nothing of any other output."""
    scores = spec.scores_of(output)
    if scores is None:
        return np.zeros(0), np.zeros(0), np.zeros(0, np.bool_)
    count = scores.shape[-1]
    reference, found = (np.asarray(side[scores.name], np.float64).reshape(-1, count) for side in (expected, actual))
    best = np.sort(reference, axis=1)[:, -2:]  # twice the same where there is one
    different = np.not_equal(expected[output.name], actual[output.name]).reshape(-1)
    return best[:, -1] - best[:, 0], np.abs(found - reference).max(axis=1), different


def state_norm(runtime: Runtime) -> float:
    """2-norm of the matrices in the state, or of the hidden state where there are none."""
    state, specs = runtime.state(), runtime.spec.states
    kinds = [[state[tensor.name] for tensor in specs if tensor.role == role] for role in ("matrix", "hidden")]
    memory = next((found for found in kinds if found), list(state.values()))  # nothing, where there is no state
    return float(np.sqrt(sum(float(np.square(v, dtype=np.float64).sum()) for v in memory)))


def _with_times(
    rows: list[Row], options: ReportOptions, progress: Progress
) -> tuple[list[Row], float | None, tuple[str, ...]]:
    """Rows with their times, the read bandwidth, and why neither is to be relied on."""
    contenders = {
        row.label: Contender(row.label, Bundle.open(row.bundle), row.entry.target)
        for row in rows
        if row.why_not_run is None
    }
    if not contenders:
        return rows, None, ()
    reasons: dict[str, str] = {}

    def fail(contender: Contender, error: LramError) -> None:
        reasons[contender.name] = str(error)

    settings = BenchOptions((), options.threads, steps=options.steps, rate=options.rate)
    report = bench_together(list(contenders.values()), settings, progress, fail)
    alive = [label for label in contenders if label not in reasons]
    measured = dict(zip(alive, zip(report.results, report.samples, strict=True), strict=True))
    filled = []
    for row in rows:
        timing, seconds = measured.get(row.label, (None, None))
        filled.append(dataclasses.replace(row, timing=timing, seconds=seconds, why_not_timed=reasons.get(row.label)))
    return filled, report.bandwidth, report.warnings
