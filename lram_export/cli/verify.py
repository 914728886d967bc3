"""`verify`: proof that a bundle does what the reference model does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lram_export.bundle.bundle import Bundle
from lram_export.cli import options
from lram_export.cli.console import ConsoleProgress, message, print_json, print_table
from lram_export.cli.parameters import INPUT_FILE, PATH, SEED, Command, steps
from lram_export.describe import cost_line, counted, different_actions
from lram_export.errors import UsageError
from lram_export.spec.parity import ParityResult
from lram_export.system.machine import suitable_threads

if TYPE_CHECKING:
    from lram_export.checkpoints.loading import CheckpointSource
    from lram_export.episodes.steps import StepSequence
    from lram_export.verification.flights import Replay
    from lram_export.verification.verify import Comparison, TargetMeters

DEFAULT_SEED = 1
COLUMNS = (
    "target",
    "precision",
    "steps",
    "max error",
    "mean error",
    "relative",
    "worst at step",
    "state error",
    "actions differ",
    "largest tie",
    "verdict",
)


@click.command(cls=Command)
@options.bundle
@click.option("--checkpoint", type=PATH, help="Compare with this checkpoint's reference model (needs torch).")
@options.source_options
@options.other_checkpoint
@options.targets
@click.option(
    "--recording",
    type=INPUT_FILE,
    help="With --checkpoint: steps of lram-export record, not random ones. A flight of `loop` also without.",
)
@click.option("--steps", type=steps(1), help="With --checkpoint: number of steps; default 500, or all recorded.")
@click.option("--seed", type=SEED, help="With --checkpoint: seed of the steps; default 1.")
@options.threads
@options.ray
@options.as_json
@options.quiet
def verify(
    bundle: Path,
    checkpoint: Path | None,
    reading: options.CheckpointOptions,
    other_checkpoint: bool,
    targets: tuple[str, ...],
    recording: Path | None,
    steps: int | None,
    seed: int | None,
    threads: int | None,
    ray: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Check a bundle's files, then its behaviour; exit with 1 if a verdict is negative.

    Without --checkpoint the recorded steps in the bundle are replayed; torch is not needed. With it, fresh
    random steps, or those of a --recording, run on the reference model and on the targets, side by side; and codes,
    recorded steps and the cost of quantization are compared with the checkpoint. If the recording is a flight, its
    steps are taken again, too, and the actions compared with those that were recorded.
    """
    from lram_export.flight.reader import is_flight, read_flight
    from lram_export.flight.recorder import SUFFIX
    from lram_export.runtimes import unavailable
    from lram_export.verification import verify as library
    from lram_export.verification.drift import drift as drift_of

    flown = recording is not None and (recording.suffix == SUFFIX or is_flight(recording))
    given = (
        (recording is not None and not flown)
        or steps is not None
        or seed is not None
        or other_checkpoint
        or ray is not None
    )
    if checkpoint is None and (given or reading.given):
        raise UsageError(
            f"--recording, --steps, --seed, --other-checkpoint, --ray, {options.READING_OPTIONS}, "
            f"{options.TRAINER_OPTIONS}: only with --checkpoint; "
            "without, the recorded steps are replayed, and those of a flight"
        )
    options.check_ray(ray, 1)
    opened, progress = Bundle.open(bundle), ConsoleProgress(quiet)
    chosen = library.installed_targets(opened, targets)
    skipped = [t for t in opened.targets if t not in chosen and not targets]
    flight = None
    if flown and recording is not None:
        from lram_export.verification.flights import check_takes, replay_flight

        flight = read_flight(recording)
        check_takes(opened, flight)  # before long work: did this policy fly?
    opened.check_report()
    # those that run are checked when they are loaded
    opened.check_files(f for entry in opened.manifest.artifacts if entry.target not in chosen for f in entry.files)
    if opened.manifest.quantization is not None and not any(opened.artifact(t).reads_codes for t in chosen):
        opened.check_files([opened.manifest.quantization.file])
    cores = threads or suitable_threads(opened.manifest.parameters, opened.manifest.batch_size)
    drift: dict[str, dict[str, list[float]]] = {}
    compared = None
    if checkpoint is None:
        results = library.verify_targets(opened, chosen, threads=cores, progress=progress)
    else:
        loaded = reading.load_source(checkpoint, progress)
        inputs = library.checkpoint_steps(opened, recording, steps, DEFAULT_SEED if seed is None else seed)
        with ExitStack() as held:
            elsewhere = None
            if ray is not None:
                source = reading.source(checkpoint)
                elsewhere = held.enter_context(
                    _on_cluster(ray, opened, chosen, source, inputs, cores, other_checkpoint, progress)
                )
            compared = library.verify_against_checkpoint(
                opened,
                loaded,
                chosen,
                inputs=inputs,
                threads=cores,
                other_checkpoint=other_checkpoint,
                progress=progress,
                elsewhere=elsewhere,
            )
        results = compared.results
        drift = {target: drift_of(meter.errors, inputs) for target, meter in compared.meters.items()}
        if steps is not None and len(inputs) < steps:
            message(f"note: {recording} has {counted(len(inputs), 'step')}", quiet)
    for target in skipped:
        message(f"not verified: {target}: {unavailable(target)}", quiet)
    replays: list[Replay] = []
    if flight is not None:
        replays = replay_flight(opened, flight, chosen, threads=threads, progress=progress)
    passed = all(result.passed for result in results.values()) and all(replay.passed for replay in replays)
    passed = passed and (compared is None or compared.passed)
    if as_json:
        print_json(
            {
                "bundle": str(bundle),
                "against": "recorded steps" if checkpoint is None else str(checkpoint),
                "passed": passed,
                "not_installed": skipped,
                "targets": {t: r.to_json() for t, r in results.items()},
                "drift": drift,
                **({"flight": [replay.to_json() for replay in replays]} if replays else {}),
                **({} if compared is None else compared.to_json()),
            }
        )
    else:
        against = "its recorded steps" if checkpoint is None else str(checkpoint)
        print_table(
            f"{bundle} against {against}",
            COLUMNS,
            [_row(t, r) for t, r in results.items()],
            [*_notes(results, drift), *([] if compared is None else _verdicts(compared)), *map(_replayed, replays)],
        )
    sys.exit(0 if passed else 1)


@contextmanager
def _on_cluster(
    address: str,
    bundle: Bundle,
    targets: list[str],
    source: CheckpointSource,
    inputs: StepSequence,
    threads: int,
    other_checkpoint: bool,
    progress: ConsoleProgress,
) -> Iterator[Callable[[], dict[str, TargetMeters]]]:
    """What has the targets step on the nodes of a cluster, each beside an oracle of its own."""
    from lram_export.checkpoints.loading import is_policy_file
    from lram_export.checkpoints.travelling import found_here
    from lram_export.cluster.crew import crew_at
    from lram_export.cluster.demand import export_demand
    from lram_export.cluster.verifying import VerifyJob
    from lram_export.trainers.files import trainer_of

    path = Path(source.path)
    if is_policy_file(path) or trainer_of(path) is not None:
        raise UsageError(f"--ray: only with a checkpoint of a model; {path} is verified on this machine")
    job = VerifyJob(bundle.path, tuple(targets), found_here(source), other_checkpoint, inputs, threads)
    asked = export_demand(bundle.manifest.parameters, threads)
    with crew_at(address, asked, progress, lambda line: message(line, progress.quiet)) as crew:
        yield lambda: dict(zip(targets, crew.results(job, targets), strict=True))


def _row(target: str, result: ParityResult) -> list[str]:
    state = "-" if result.state_error is None else f"{result.state_error:.2g}"
    return [
        target,
        result.precision,
        str(result.steps),
        f"{result.max_logit_error:.2g}",
        f"{result.mean_logit_error:.2g}",
        "-" if result.relative_error is None else f"{result.relative_error:.2g}",
        "-" if result.worst is None else str(result.worst.step),
        state,
        different_actions(result),
        f"{result.largest_tie:.2g} {_unit(result)}" if result.actions_different else "-",
        "passed" if result.passed else "FAILED",
    ]


def _replayed(replay: Replay) -> str:
    """What became of a flight on a target."""
    taken = f"flight again on {replay.target}: {counted(replay.steps, 'step')}"
    if not replay.different:
        return f"{taken}, every action the same to the bit"
    verdict = f"flown: {replay.flown}"
    if replay.own_different:
        verdict = (
            f"FAILED: at {counted(replay.own_different, 'step')} this artifact flew, with this software and processor"
        )
    return (
        f"{taken}, {counted(replay.different, 'action')} not the same to the bit, by up to {replay.largest:.2g}, "
        f"the first at step {replay.first}; {verdict}"
    )


def _unit(result: ParityResult) -> str:
    """Of margins between logits."""
    return "of norm" if result.tolerance.relative else "logits"


def _notes(results: dict[str, ParityResult], drift: dict[str, dict[str, list[float]]]) -> list[str]:
    notes, bounds = [], []
    for target, result in results.items():
        notes += [f"{target}: {line}" for line in result.failures()]
        of_what = "logit error" if result.actions else "error"
        for environment, (first, *others) in drift.get(target, {}).items():
            notes.append(
                f"{target}, {environment}: largest {of_what} {first:.2g} in the first tenth of an episode, "
                f"{[first, *others][-1]:.2g} in the last"
            )
        bound = result.tolerance
        relative = " (relative)" if bound.relative else ""
        choice = (
            f"; an action may differ where the reference's logits are tied within {bound.tie:g}{relative}"
            if result.actions
            else ""
        )
        bounds.append(
            f"tolerance for {result.precision} with {result.activations} activations: "
            f"{'logits' if result.actions else 'outputs'} {bound.logit:g}{relative}, state {bound.state:g} (relative)"
            f"{choice}"
        )
    return notes + list(dict.fromkeys(bounds))


def _verdicts(compared: Comparison) -> list[str]:
    """A line or more per question that only the checkpoint answers."""
    lines = []
    codes, cost = compared.oracle.codes, compared.recorded.cost
    if codes is not None:
        lines.append(
            f"right codes: {_verdict(codes.passed)}; {len(codes.matrices)} matrices, {codes.method}, largest relative "
            f"error of one {codes.largest_error:.2g}"
        )
        lines += codes.failures()
    lines.append(f"right computation: {_verdict(compared.computation)}; the targets, and the bundle's recorded steps")
    lines += [f"recorded steps: {line}" for line in compared.recorded.parity.failures()]
    if compared.different_weight is not None:
        lines.append(f"pytorch: {compared.different_weight} is not the checkpoint's")
    if cost is not None:
        told = "the manifest states none" if cost.passed is None else _verdict(cost.passed)
        lines.append(f"cost: {told}; {cost_line({'measured_on': 'recorded', **cost.measured.to_json()})}")
        lines += [f"cost: {line}" for line in cost.failures()]
    return lines


def _verdict(passed: bool) -> str:
    return "passed" if passed else "FAILED"
