"""`compare`: two bundles side by side."""

from __future__ import annotations

from pathlib import Path

import click

from lram_export.cli import options
from lram_export.cli.console import ConsoleProgress, print_json, print_table
from lram_export.cli.parameters import BUNDLE, INPUT_FILE, TARGET, Command
from lram_export.describe import counted, human_bytes


@click.command(cls=Command)
@click.argument("first", type=BUNDLE)
@click.argument("second", type=BUNDLE)
@click.option("--target", type=TARGET, help="Target of both; default: each one's first that runs here.")
@click.option("--second-target", type=TARGET, help="Target of the second; default: as --target.")
@click.option("--recording", type=INPUT_FILE, help="Steps of lram-export record; default: the first one's own.")
@options.threads
@options.as_json
@options.quiet
def compare(
    first: Path,
    second: Path,
    target: str | None,
    second_target: str | None,
    recording: Path | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Step two bundles over the same inputs: sizes, speed, and how often and how far their actions differ."""
    from lram_export.benchmark.compare import compare_bundles
    from lram_export.bundle.bundle import Bundle
    from lram_export.system.machine import suitable_threads

    bundles = Bundle.open(first), Bundle.open(second)
    found = compare_bundles(
        *bundles,
        targets=(target, second_target or target),
        recording=recording,
        threads=threads or max(suitable_threads(b.manifest.parameters, b.manifest.batch_size) for b in bundles),
        progress=ConsoleProgress(quiet),
    )
    if as_json:
        print_json(found)
        return
    sides, difference = (found.first, found.second), found.difference
    rows = [
        ["target", *(side.target for side in sides)],
        ["precision", *(f"{side.precision}, activations {side.activations}" for side in sides)],
        ["checkpoint", *(side.checkpoint for side in sides)],
        ["written", *(f"{side.written} by {side.generator}" for side in sides)],
        ["size", *(human_bytes(side.size) for side in sides)],
        ["weights a step reads", *(human_bytes(side.weight_bytes) for side in sides)],
        ["with", *(", ".join(f"{name} {version}" for name, version in side.tools.items()) for side in sides)],
        ["p50 ms", *("-" if side.p50_ms is None else f"{side.p50_ms:.3g}" for side in sides)],
    ]
    over = "the first one's recorded steps" if recording is None else str(recording)
    where = "" if found.first_different_step is None else f", first at step {found.first_different_step}"
    chosen, what = f"actions differ by at most {found.largest_difference:.3g}{where}", "outputs"
    if difference.actions:
        chosen = (
            f"{difference.actions_different} of {difference.actions} action values differ{where}, "
            f"{100 * difference.disagreement:.3g}% by more than one bin, by at most {found.largest_difference:.3g}"
        )
        what = "action logits"
    notes = [
        f"over {counted(difference.steps, 'step')} ({over}): {chosen}",
        f"{what}: relative difference {difference.relative_error:.2g}, largest {difference.max_logit_error:.2g}",
        "both were timed in turns, so their times compare; lram-export bench has the tails and the floor",
        *(f"{side.bundle} was not timed: {side.not_timed}" for side in sides if side.not_timed is not None),
    ]
    print_table(f"{first} and {second}", ["", str(first), str(second)], rows, notes)
