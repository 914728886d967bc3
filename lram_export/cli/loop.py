"""`loop`: a policy and a robot, at a fixed rate."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from lram_export.cli import options
from lram_export.cli.parameters import INPUT_FILE, PATH, POSITIVE, Command, OutputFile
from lram_export.cli.streams import logged


@click.command(cls=Command)
@options.bundle
@click.option("--robot", metavar="MODULE:CLASS", help="The robot's class, e.g. robot:Robot; default: rehearse.")
@click.option(
    "--observations",
    type=INPUT_FILE,
    help="Rehearse over an .npz, as `run` takes it; default: over what the bundle was verified by.",
)
@click.option("--rate", type=POSITIVE, help="Steps per second, Hz; default: the bundle's, or 50.")
@click.option("--controller-rate", type=POSITIVE, help="Actions per second, a multiple of the rate; default: the rate.")
@click.option(
    "--between",
    type=click.Choice(("hold", "linear")),
    help="With --controller-rate: what is sent between two steps; default: hold.",
)
@click.option(
    "--steps",
    type=click.IntRange(0, 10**12),
    default=0,
    help="End after so many; default: never, of a rehearsal after 500.",
)
@click.option(
    "--bridge",
    type=click.IntRange(0, 1_000_000),
    default=10,
    show_default=True,
    help="Steps in a row that may have a fault; at the next the robot is stopped.",
)
@click.option(
    "--by",
    type=click.Choice(("coast", "hold")),
    default="coast",
    show_default=True,
    help="At a fault: step on over the last good reading, or send the last action again.",
)
@click.option(
    "--frozen",
    type=click.IntRange(0, 1_000_000_000),
    default=0,
    help="Readings in a row that may be the same to the bit; default: any number.",
)
@click.option("--record", type=PATH, help="Record the flight: a new .mcap, or a folder for one named by the time.")
@click.option(
    "--priority",
    type=click.IntRange(1, 99),
    help="Real-time priority of the loop's thread, and of no other; default: none.",
)
@click.option("--if-permitted", is_flag=True, help="With --priority: go on without it where it is not allowed.")
@click.option(
    "--cpu",
    type=click.IntRange(0, 1_000_000),
    help="Core of the loop's thread, which other threads of the process leave to it; default: any.",
)
@click.option("--state", type=OutputFile(".npz"), help="Save where the run is at its end, as .npz.")
@click.option("--resume", is_flag=True, help="With --state: go on from there, if it is there.")
@options.target
@options.threads
def loop(
    bundle: Path,
    robot: str | None,
    observations: Path | None,
    rate: float | None,
    controller_rate: float | None,
    between: str | None,
    steps: int,
    bridge: int,
    by: str,
    frozen: int,
    record: Path | None,
    priority: int | None,
    if_permitted: bool,
    cpu: int | None,
    state: Path | None,
    resume: bool,
    target: str | None,
    threads: int | None,
) -> None:
    """Let a policy act on a robot, at a fixed rate, until it is stopped.

    SIGTERM and SIGINT stop the motors and end; SIGHUP lets the bundle, replaced meanwhile, take over between two steps.
    Without --robot it rehearses: recorded observations go in, actions go nowhere.
    """
    from lram_export.loop.program import Wishes, run_program

    sys.path.insert(0, str(Path.cwd()))  # where a user's robot.py lies
    wishes = Wishes(
        bundle=bundle,
        robot=robot,
        observations=observations,
        target=target,
        threads=threads,
        rate=rate,
        controller_rate=controller_rate,
        between=between,
        steps=steps,
        bridge=bridge,
        by=by,
        frozen=frozen,
        record=record,
        priority=priority,
        if_permitted=if_permitted,
        cpu=cpu,
        state=state,
        resume=resume,
    )
    lines = logging.StreamHandler()
    lines.setFormatter(_Line())
    with logged("lram_export.loop", lines):
        run_program(wishes, click.echo)


class _Line(logging.Formatter):
    """Warnings say that they are."""

    def format(self, record: logging.LogRecord) -> str:
        word = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return word + " ".join(record.getMessage().split())
