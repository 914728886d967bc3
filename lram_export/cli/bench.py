"""`bench`: milliseconds per environment step, and how far they are from the memory's speed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lram_export.bundle.bundle import Bundle
from lram_export.cli import options
from lram_export.cli.console import ConsoleProgress, message, print_json, print_table
from lram_export.cli.parameters import PATH, POSITIVE, Command, steps
from lram_export.describe import counted, different_actions, human_bytes
from lram_export.errors import UsageError
from lram_export.rates import other_rate
from lram_export.spec.parity import FLOAT32
from lram_export.system.machine import cpu_model, suitable_threads
from lram_export.targets.native.format import keeps_matrices

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lram_export.benchmark.bench import BenchReport


PROFILED = {"native"}
"""Targets that can tell where the time of a step goes."""


@click.command(cls=Command)
@options.bundle
@options.targets
@click.option("--steps", default=1000, show_default=True, type=steps(10), help="Timed steps per target.")
@options.threads
@click.option(
    "--rate",
    type=POSITIVE,
    help="Pace the loop at this many Hz and count missed deadlines; default: the rate that the bundle says.",
)
@click.option("--unpaced", is_flag=True, help="Do not pace the loop, though the bundle says a rate.")
@click.option(
    "--baseline",
    is_flag=True,
    help="Also time the original code's own step, token by token, in eager PyTorch.",
)
@click.option("--profile", is_flag=True, help="Also tell where the time of a step goes, of the target native.")
@click.option(
    "--state-formats", is_flag=True, help="Time the target native with every format of its state, and compare them."
)
@click.option(
    "--checkpoint",
    type=PATH,
    help="With --baseline: the weights it runs; default: the bundle's or random ones.",
)
@options.checkpoint_options
@options.as_json
@options.quiet
def bench(
    bundle: Path,
    targets: tuple[str, ...],
    steps: int,
    threads: int | None,
    rate: float | None,
    unpaced: bool,
    baseline: bool,
    profile: bool,
    state_formats: bool,
    checkpoint: Path | None,
    reading: options.CheckpointOptions,
    as_json: bool,
    quiet: bool,
) -> None:
    """Time whole steps of the targets in turns, next to the machine's read bandwidth.

    Milliseconds belong to this run on this machine; compare ratios within one run.
    """
    from lram_export.benchmark import bench as library

    if checkpoint is not None and not baseline:
        raise UsageError("--checkpoint: only with --baseline")
    if reading.given and checkpoint is None:
        raise UsageError(f"{options.READING_OPTIONS}: only with --checkpoint")
    if unpaced and rate is not None:
        raise UsageError("--unpaced: not with --rate")
    opened = Bundle.open(bundle)
    trained = opened.manifest.interface.rate
    if rate is None and not unpaced:
        rate = trained
    chosen = library.BenchOptions(
        targets=library.timed_targets(opened, targets),
        threads=threads or suitable_threads(opened.manifest.parameters, opened.manifest.batch_size),
        steps=steps,
        rate=rate,
        baseline=baseline,
        profile=profile,
        state_formats=state_formats,
        baseline_source=None if checkpoint is None else reading.source(checkpoint),
    )
    if profile and not set(chosen.targets) & PROFILED:
        timed = ", ".join(chosen.targets)
        raise UsageError(f"--profile: expected the target native among those that are timed, got {timed}")
    if state_formats:
        check_state_formats(opened, chosen.targets)
    warning = other_rate(str(bundle), trained, rate, "measured")
    if warning is not None:
        message(f"warning: {warning}", quiet)
    report = library.bench(opened, chosen, ConsoleProgress(quiet))
    if as_json:
        print_json({"bundle": str(bundle), "cpu": cpu_model(), "rate": rate, **_document(report)})
        return
    print_report(str(bundle), report, rate)


def check_state_formats(bundle: Bundle, targets: Sequence[str]) -> None:
    """Raise UsageError unless there is a state to keep in several formats, and the target that does."""
    if "native" not in targets:
        timed = ", ".join(targets)
        raise UsageError(f"--state-formats: expected the target native among those that are timed, got {timed}")
    if not keeps_matrices(bundle.manifest.spec, bundle.manifest.task):
        raise UsageError(f"--state-formats: {bundle.path} has no matrices in its state, which they are for")


def _document(report: BenchReport) -> dict[str, object]:
    import dataclasses

    document = dataclasses.asdict(report)
    del document["samples"]  # every single step
    return document


def print_report(title: str, report, rate: float | None) -> None:  # type: ignore[no-untyped-def]
    """The benchmark as tables: speed first, then what it took."""
    results = report.results
    leaves_work = any(r.leaves_work for r in results)
    columns = [
        "target",
        "precision",
        "threads",
        "steps",
        "p50 ms",
        "p90",
        "p99",
        "p99.9",
        "max",
        "jitter",
        *(["free ms"] if leaves_work else []),
        "cpu ms",
        "floor ms",
        "x floor",
    ]
    columns += ["missed", "cpu s/s"] if rate else []
    rows = [
        [
            _title(r),
            r.precision,
            str(r.threads),
            str(r.steps),
            *(f"{value:.3g}" for value in (r.p50_ms, r.p90_ms, r.p99_ms, r.p999_ms, r.max_ms)),
            f"{r.jitter:.2f}",
            *([f"{r.free_ms:.3g}"] if leaves_work else []),
            f"{r.cpu_ms:.3g}",
            f"{r.floor_ms:.3g}",
            f"{r.floor_ratio:.2f}",
            *([f"{r.missed}", f"{r.cpu_per_second:.3f}"] if rate else []),
        ]
        for r in results
    ]
    low, high = report.bandwidth_range
    notes = [
        f"read bandwidth in this run, {counted(results[0].threads, 'thread')}: {report.bandwidth / 1e9:.1f} GB/s "
        f"({low / 1e9:.1f} to {high / 1e9:.1f}); the floor is bytes per step divided by it",
        f"products of float32 matrices, as fast as numpy makes them: {report.products / 1e9:.3g} billion "
        f"multiplications per second ({report.products_range[0] / 1e9:.3g} to {report.products_range[1] / 1e9:.3g})",
        "jitter is p99.9 / p50; x floor is the median over windows of "
        + ("the time until free / floor" if leaves_work else "p50 / floor"),
        "cpu ms is the processor time of all threads per step",
    ]
    if leaves_work:
        notes.append("times run to the action; free ms is the median until the target has nothing left to do")
    if any(r.steps < 1000 for r in results):
        notes.append("with fewer than 1000 steps, p99.9 is close to the maximum")
    if rate:
        notes.append(
            f"paced at {rate:g} Hz: times run from the tick to the action, missed counts later than the next tick"
        )
        notes.append("cpu s/s is the processor time of all threads per second of the loop, pauses included")
    print_table(f"{title}: one environment step", columns, rows, notes)
    rows = [
        [
            _title(r),
            human_bytes(r.size) if r.size else "-",
            f"{r.load_ms:.0f}",
            f"{r.first_step_ms:.3g}",
            human_bytes(r.peak_memory),
            human_bytes(r.bytes_per_step),
            r.weights,
            "-" if r.parity is None else f"{r.parity.max_logit_error:.2g}",
            "-" if r.parity is None else different_actions(r.parity),
        ]
        for r in results
    ]
    columns = [
        "target",
        "size",
        "load ms",
        "first step ms",
        "peak memory",
        "bytes per step",
        "weights",
        "max error",
        "actions differ",
    ]
    pages = [
        f"{_title(r)} {r.precision}, in huge pages: {human_bytes(r.memory.huge_state)} of "
        f"{human_bytes(r.memory.state)} of state, {human_bytes(r.memory.huge_weights)} of "
        f"{human_bytes(r.memory.weights)} of weights"
        for r in results
        if r.memory is not None
    ]
    baseline = [r for r in results if r.target == "original"]
    ratios = [
        f"{_title(r)}: {b.p50_ms / max(r.p50_ms, r.free_ms):.1f} times as fast as the original"
        for b in baseline
        for r in results
        if r is not b
    ]
    ratios += state_format_lines(results)
    print_table(
        "what it took", columns, rows, [*pages, *ratios, *(f"not to be relied on: {w}" for w in report.warnings)]
    )
    _print_stages(results)


def _title(result) -> str:  # type: ignore[no-untyped-def]
    """A target, and how it keeps its state where that is not float32."""
    return str(result.target) if result.state_format == FLOAT32 else f"{result.target} {result.state_format}"


def state_format_lines(results) -> list[str]:  # type: ignore[no-untyped-def]
    """What another format of the state is worth on this processor, of the target that has been timed with several."""
    plain = {r.precision: r for r in results if r.target == "native" and r.state_format == FLOAT32}
    lines = []
    for r in results:
        if r.state_format == FLOAT32 or r.precision not in plain:
            continue
        other = plain[r.precision]
        action, free = r.p50_ms / other.p50_ms, max(r.free_ms, r.p50_ms) / max(other.free_ms, other.p50_ms)
        said = "slower on this processor" if min(action, free) > 1 else "of the time with a state in float32"
        lines.append(f"{_title(r)} {r.precision}: to the action {action:.2f}, until free {free:.2f}, {said}")
    return lines


def _print_stages(results) -> None:  # type: ignore[no-untyped-def]
    """Where the time of a step went, of the targets that told."""
    profiled = [r for r in results if r.stages_ms is not None]
    if not profiled:
        return
    stages = list(profiled[0].stages_ms)
    rows = [
        [_title(r), *(f"{r.stages_ms[s]:.3g} ({r.stages_ms[s] / sum(r.stages_ms.values()):.0%})" for s in stages)]
        for r in profiled
    ]
    notes = [
        "milliseconds of a step, the mean of the threads: matrices (dense), what is read and updated of the memory "
        "that goes from step to step (memory), waiting for other threads (wait), what is done after the action "
        "(leftover)"
    ]
    print_table("where the time goes", ["target", *stages], rows, notes)
