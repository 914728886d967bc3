"""`flight`: what a flight recorder wrote."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lram_export.cli import options
from lram_export.cli.console import message, print_facts, print_json
from lram_export.cli.parameters import INPUT_FILE, Command, OutputFile
from lram_export.describe import counted
from lram_export.system.files import atomic_file, check_output

if TYPE_CHECKING:
    from lram_export.flight.reader import Flight
    from lram_export.flight.summary import FlightSummary


@click.command(cls=Command)
@click.argument("recording", type=INPUT_FILE, metavar="FLIGHT")
@click.option("-o", "--output", type=OutputFile(".npz"), help="Write it as .npz, too, for numpy and as a recording.")
@options.force
@options.as_json
@options.quiet
def flight(recording: Path, output: Path | None, force: bool, as_json: bool, quiet: bool) -> None:
    """Say what a flight of `loop --record` was like; or make an .npz of it.

    `verify --recording` takes it again, `run` and `record --observations` step over it, `report --flight` shows it.
    """
    from lram_export.flight.archive import save_archive
    from lram_export.flight.reader import read_flight
    from lram_export.flight.summary import summary

    if output is not None:
        check_output(output, force=force)
    found = read_flight(recording)
    told = summary(found)
    if output is not None:
        with atomic_file(output, force=force) as temporary:
            save_archive(found, temporary)
    if as_json:
        bundles = [_bundle(found, number) for number in range(len(found.headers))]
        out = {} if output is None else {"output": str(output)}
        print_json({"flight": str(recording), "whole": found.whole, "bundles": bundles, **told.to_json(), **out})
    else:
        print_facts(str(recording), _facts(found, told))
        if output is not None:
            message(f"{output}: written", quiet)


def _bundle(found: Flight, number: int) -> dict[str, object]:
    header = found.headers[number]
    names = ("bundle", "target", "precision", "digest", "weights", "rate", "ticks", "release")
    return {name: getattr(header, name) for name in names} | vars(header.place)


def _facts(found: Flight, told: FlightSummary) -> list[tuple[str, str]]:
    header = found.header
    began = datetime.fromtimestamp(header.began / 1e9, timezone.utc)
    facts = [("began", f"{began:%Y-%m-%d %H:%M:%S} UTC")]
    facts += [("flew", f"{h.bundle} on {h.target}, {h.precision}, {h.digest[:12]}") for h in found.headers]
    facts += [
        ("machine", header.place.machine),
        ("software", header.place.software),
        ("rate", f"{header.rate:g} Hz" + (f", {header.ticks} actions a step" if header.ticks > 1 else "")),
        ("steps", f"{told.steps:,} in {told.seconds:.1f} s, {counted(told.episodes, 'episode')}"),
        ("to take again", counted(told.replayable, "step")),
    ]
    for name, times in (("from reading to action", told.latency), ("step of the policy", told.step)):
        if times is not None:
            p50, p99, largest = (1000 * value for value in times)
            facts.append((name, f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, largest {largest:.2f} ms"))
    facts.append(("missed deadlines", f"{told.missed:,}"))
    faults = ", ".join(f"{kind} {count:,}" for kind, count in told.faults.most_common())
    facts.append(("steps with a fault", faults or "none"))
    facts += [(f"{name} clamped", f"{count:,} times") for name, count in told.clamped.items()]
    facts += [(f"{name} held by safety", counted(count, "step")) for name, count in told.held.items()]
    if told.missing:
        facts.append(("not in the file", counted(told.missing, "step")))
    if not found.whole:
        facts.append(("the file's end", "missing: whoever wrote it was killed, or the disk was full"))
    if told.stopped:
        facts.append(("stopped safely", told.stopped))
    return facts
