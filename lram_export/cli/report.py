"""`report`: a bundle as one HTML page with tables and charts."""

from __future__ import annotations

from pathlib import Path

import click

from lram_export.cli import options
from lram_export.cli.console import ConsoleProgress, message
from lram_export.cli.parameters import INPUT_FILE, OTHER_BUNDLE, PATH, POSITIVE, Command, steps
from lram_export.describe import human_bytes
from lram_export.errors import UsageError
from lram_export.report import missing_packages
from lram_export.system.files import atomic_file, check_output


@click.command(cls=Command)
@options.bundle
@options.output_file(".html")
@click.option("--also", multiple=True, type=OTHER_BUNDLE, help="Another precision of the policy; may be repeated.")
@click.option("--checkpoint", type=PATH, help="Compare with this PyTorch model, not with the recorded steps.")
@click.option("--recording", type=INPUT_FILE, help="With --checkpoint: compare on its steps, not on random ones.")
@click.option(
    "--evaluation", "evaluations", type=INPUT_FILE, multiple=True,
    help="Closed loop: what lram-export evaluate --json printed; may be repeated.",
)  # fmt: skip
@click.option("--flight", type=INPUT_FILE, help="A flight of these weights (.mcap): show it, and take it again.")
@click.option(
    "--flight-steps",
    default=10_000,
    show_default=True,
    type=steps(0),
    help="Steps of the flight to take again, from its start; 0: none.",
)
@click.option("--steps", default=500, show_default=True, type=steps(10), help="Steps to compare and to time.")
@click.option("--rate", type=POSITIVE, help="Rate of the control loop in Hz: the deadline.")
@options.targets
@options.threads
@click.option("--no-timing", is_flag=True, help="Do not time the targets.")
@options.force
@options.source_options
@options.other_checkpoint
@options.quiet
def report(
    bundle: Path,
    output: Path,
    also: tuple[Path, ...],
    checkpoint: Path | None,
    recording: Path | None,
    evaluations: tuple[Path, ...],
    flight: Path | None,
    flight_steps: int,
    steps: int,
    rate: float | None,
    targets: tuple[str, ...],
    threads: int | None,
    no_timing: bool,
    force: bool,
    reading: options.CheckpointOptions,
    other_checkpoint: bool,
    quiet: bool,
) -> None:
    """Write one HTML page about a bundle: tables, charts, and how to read them."""
    check_packages()
    from lram_export.bundle.bundle import Bundle
    from lram_export.report.collect import ReportOptions, collect
    from lram_export.report.page import render
    from lram_export.system.machine import suitable_threads

    if (reading.given or other_checkpoint) and checkpoint is None:
        raise UsageError(
            f"--other-checkpoint, {options.READING_OPTIONS}, {options.TRAINER_OPTIONS}: only with --checkpoint"
        )
    if recording is not None and checkpoint is None:
        raise UsageError("--recording: only with --checkpoint")
    check_output(output, force=force)
    if output.resolve().is_relative_to(bundle.resolve()):
        raise UsageError(f"--output: {output} is in the bundle, whose manifest lists every file; choose another place")
    progress = ConsoleProgress(quiet)
    opened = Bundle.open(bundle)
    for target in targets:
        opened.artifact(target)
    if threads is None:
        threads = suitable_threads(opened.manifest.parameters, opened.manifest.batch_size)
    found = collect(
        opened,
        [Bundle.open(other) for other in also],
        ReportOptions(
            steps,
            recording,
            rate,
            time=not no_timing,
            threads=threads,
            targets=targets,
            other_checkpoint=other_checkpoint,
            flight=flight,
            flight_steps=flight_steps,
        ),
        None if checkpoint is None else reading.load_source(checkpoint, progress),
        evaluations,
        progress,
    )
    with atomic_file(output, force=force) as temporary:
        temporary.write_text(render(found), encoding="utf-8")
    message(f"{output}: {human_bytes(output.stat().st_size)}; open it in a browser, or print it", quiet)


def check_packages() -> None:
    """Raise UsageError unless what draws charts is installed."""
    missing = missing_packages()
    if missing:
        raise UsageError(
            f"a report needs the package '{missing[0]}', which is not installed. "
            f"Install it with: pip install 'lram-export[report]'"
        )
