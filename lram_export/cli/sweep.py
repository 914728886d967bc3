"""`sweep`: one checkpoint, every target and precision, one table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lram_export.cli import options
from lram_export.cli.console import ConsoleProgress, message, or_dash, print_json, print_table
from lram_export.cli.parameters import EPISODES, INPUT_FILE, PATH, SEED, THREADS, Command, steps
from lram_export.describe import human_bytes
from lram_export.system.machine import cpu_model

if TYPE_CHECKING:
    from lram_export.cluster.crew import RayCrew
    from lram_export.sweep.grid import CellResult
    from lram_export.sweep.plan import SweepPlan
    from lram_export.sweep.sweep import SweepReport

COLUMNS = (
    "precision\nand target",
    "size",
    "p50\nms",
    "p99\nms",
    "x\nfloor",
    "logit\nerror",
    "differ",
    "> 1\nbin",
)
NOTES = (
    "x floor: p50 as a multiple of reading weights and state from memory once; all cells were timed in turns",
    "logit error: against the PyTorch model of the same precision, what verify measures",
    "differ, > 1 bin: action values other than the float32 reference's, and by more than one bin",
)


@click.command(cls=Command)
@options.checkpoint
@click.option(
    "-o", "--output", default="sweep", show_default=True, type=PATH, help="The folder to make or to go on in."
)
@click.option("--targets", metavar="T1,T2,...", help="Targets; default: all that are installed, without pytorch.")
@click.option(
    "--precisions", default="fp32,int8,int4", show_default=True, metavar="P1,P2,...", help="One bundle is made of each."
)
@options.task_options
@options.batch
@options.keep_fp32
@options.calibration
@click.option(
    "--recording",
    "recordings",
    type=INPUT_FILE,
    multiple=True,
    metavar="FILE",
    help="Recording to compare actions over; may be repeated; default: what calibration held out, or random steps.",
)
@options.reference_steps
@click.option("--steps", default=1000, show_default=True, type=steps(10), help="Timed steps per cell.")
@click.option("--threads", type=THREADS, help="Of every runtime; default: by the model, with --env as evaluate.")
@click.option("--env", "environments", multiple=True, metavar="FAMILY/TASK", help="Play there; may be repeated.")
@click.option("--episodes", type=EPISODES, default=10, show_default=True, help="Per environment and cell.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the first episode.")
@options.parallel
@options.ray
@options.checkpoint_options
@options.context
@click.option("--force", is_flag=True, help="Start anew: keep nothing that is in the folder.")
@options.as_json
@options.quiet
def sweep(
    checkpoint: Path,
    output: Path,
    targets: str | None,
    precisions: str,
    asked: options.TaskOptions,
    batch: int,
    keep_fp32: tuple[str, ...],
    calibration: tuple[Path, ...],
    recordings: tuple[Path, ...],
    reference_steps: int,
    steps: int,
    threads: int | None,
    environments: tuple[str, ...],
    episodes: int,
    seed: int,
    parallel: int,
    ray: str | None,
    reading: options.CheckpointOptions,
    context: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Export, verify, time and (with --env) play a checkpoint with every target at every precision.

    What an earlier sweep in the same folder has done is kept as long as checkpoint, options and versions are the
    same. A cell that fails is reported and the rest goes on; the exit code is then 1.
    """
    from lram_export.checkpoints.loading import check_exists
    from lram_export.sweep import sweep as library
    from lram_export.sweep.grid import SweepOptions, installed_targets

    chosen = SweepOptions(
        targets=installed_targets() if targets is None else options.parse_names(targets),
        precisions=options.parse_names(precisions),
        keep_fp32=keep_fp32,
        calibration=calibration,
        recordings=recordings,
        batch_size=batch,
        reference_steps=reference_steps,
        bench_steps=steps,
        threads=threads,
        environments=tuple(dict.fromkeys(environments)),
        episodes=episodes,
        seed=seed,
        parallel=parallel,
    )
    options.check_ray(ray, parallel)
    check_exists(checkpoint)  # before a task is asked for, which what is no checkpoint does not have
    task = asked.resolve()
    progress = ConsoleProgress(quiet)
    source = reading.source(checkpoint, context)
    crew = None if ray is None else _crew(ray, progress)
    report = library.sweep(source, task, output, chosen, force=force, progress=progress, crew_for=crew)
    for assumption in report.assumptions:
        message(f"assumed: {assumption}", quiet)
    if report.kept:
        message(f"{output}: {report.kept} results of an earlier sweep kept, {report.done} made now", quiet)
    if as_json:
        print_json({"output": str(output), "cpu": cpu_model(), "options": chosen, **to_json(report)})
    else:
        print_report(f"{checkpoint}: {task.name}", report, chosen.environments)
    if report.failed:
        text = f"{len(report.failed)} of {len(report.cells)} cells failed; the same command tries them again"
        click.echo(f"error: {text}", err=True)
        sys.exit(1)


def _crew(address: str, progress: ConsoleProgress) -> Callable[[SweepPlan], AbstractContextManager[RayCrew]]:
    """The crew of a cluster for what is swept."""
    from lram_export.cluster.crew import crew_at
    from lram_export.cluster.demand import export_demand

    def crew_for(plan: SweepPlan) -> AbstractContextManager[RayCrew]:
        asked = export_demand(plan.parameters, plan.threads)
        return crew_at(address, asked, progress, lambda line: message(line, progress.quiet))

    return crew_for


def print_report(title: str, report: SweepReport, environments: Sequence[str]) -> None:
    """The grid as a table, and a second one if there are several environments."""
    columns = [*COLUMNS, *(["success"] if environments else [])]
    rows = [[*_row(cell), *([or_dash(cell.success())] if environments else [])] for cell in report.cells]
    print_table(title, columns, rows, notes(report, environments), many=True)
    if len(environments) > 1:
        rows = [[str(c.cell), *(_outcome(c, name) for name in environments)] for c in report.cells]
        names = [name.replace("/", "\n", 1) for name in environments]
        print_table("success by environment", ["precision\nand target", *names], rows, many=True)


def _row(result: CellResult) -> list[str]:
    speed, cost, parity = result.speed, result.disagreement, result.parity
    known = parity is not None
    return [
        str(result.cell),
        human_bytes(result.size) if known else result.status,
        *([f"{speed['p50_ms']:.3g}", f"{speed['p99_ms']:.3g}", f"{speed['floor_ratio']:.2f}"] if speed else ["-"] * 3),
        f"{parity.max_logit_error:.0e}" if parity is not None else "-",
        "-" if cost is None else _share(cost.actions_different, cost.actions),
        "-" if cost is None else _share(cost.beyond_one_bin, cost.actions),
    ]


def notes(report: SweepReport, environments: Sequence[str]) -> list[str]:
    """What the table's numbers mean, and why some are missing."""
    lines = list(NOTES)
    bandwidths = {c.speed["bandwidth"] for c in report.cells if c.speed}
    lines += [f"read bandwidth while timing: {b / 1e9:.1f} GB/s" for b in sorted(bandwidths)]
    if environments:
        lines.append("success: of all episodes, with its 95% interval; the same seeds for every cell")
    reasons: dict[str, list[str]] = {}
    for cell in report.cells:
        if cell.impossible:
            reasons.setdefault(cell.impossible, []).append(str(cell.cell))
    lines += [f"not possible: {', '.join(cells)}: {reason}" for reason, cells in reasons.items()]
    return lines + [f"failed: {c.cell}: {step}: {text}" for c in report.cells for step, text in c.failures.items()]


def to_json(report: SweepReport) -> dict[str, Any]:
    """The report as plain values."""
    from lram_export.episodes.intervals import interval_json

    return {
        "kept": report.kept,
        "done": report.done,
        "failed": len(report.failed),
        "cells": [
            {
                "precision": c.cell.precision,
                "target": c.cell.target,
                "status": c.status,
                "impossible": c.impossible,
                "failures": c.failures,
                "size": c.size,
                "parity": c.parity,
                "disagreement": c.disagreement,
                "speed": c.speed,
                "environments": {
                    name: {
                        "success": interval_json(c.success(name)),
                        "return": interval_json(c.mean_return(name)),
                        "episodes": episodes,
                    }
                    for name, episodes in c.episodes.items()
                },
            }
            for c in report.cells
        ],
    }


def _outcome(result: CellResult, environment: str) -> str:
    """Success where the environment tells, else the mean return."""
    success, gained = result.success(environment), result.mean_return(environment)
    if success is not None:
        return f"{100 * success.value:.0f}%"
    return "-" if gained is None else f"{gained.value:.4g}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.3g}%"
