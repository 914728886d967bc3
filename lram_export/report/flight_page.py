"""What a page says of a flight in words and tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lram_export.describe import counted, three_digits
from lram_export.flight.events import STOPPED, SWAPPED
from lram_export.report.bins import Floats
from lram_export.report.charts import Chart
from lram_export.report.flight import FlightView, Flown, Happened
from lram_export.report.flight_actions import Element, Range
from lram_export.report.flight_again import Again, Parting
from lram_export.report.flight_charts import flight_charts, most_held_back
from lram_export.report.parts import OFTEN_MISSED, Cell, Line, Table, line

FIRST_AND_LAST = 8
"""Events of a table at either end, and of its swaps and stops."""
MOST_ROWS = 24
"""Elements of an action in a table."""
MOST_TEXT = 160


@dataclass(frozen=True)
class FlightSection:
    """The part of a page that is about a flight."""

    facts: list[tuple[str, str]]
    tables: list[Table]
    notes: list[str]
    charts: list[Chart]


def section(flight: FlightView, again: Again) -> FlightSection:
    """What a page shows of a flight."""
    tables = [_faults(flight), _actions(flight), _events(flight)]
    return FlightSection(
        facts=facts(flight, again),
        tables=[table for table in tables if table.rows],
        notes=_notes(flight),
        charts=flight_charts(flight, again),
    )


def verdict(flight: FlightView, again: Again) -> list[Line]:
    """What somebody who reads nothing else has to know of a flight: first what is wrong."""
    replay, parting = again.replay, again.parting
    bad: list[str] = []
    doubt: list[str] = []
    good: list[str] = []
    if flight.stopped:
        bad.append(f"The robot had to be stopped in flight: {shortened(flight.stopped.removeprefix('stopped: '))}.")
    if replay is not None and not replay.passed:
        bad.append(
            f"{replay.target} does not do again what it did in flight: {replay.different:,} of "
            f"{counted(replay.steps, 'step')} have another action, the first is step {replay.first:,}, though the same "
            f"artifact flew on the same processor."
        )
    if parting is not None and not parting.result.passed:
        bad.append(f"In flight not what the reference does: {parting.target} {_parted(parting)}.")
    share = flight.missed / max(flight.steps, 1)
    if flight.missed:
        late = f"{counted(flight.missed, 'missed deadline')} in {counted(flight.steps, 'step')} at {_rate(flight)}"
        (bad if share > OFTEN_MISSED else doubt).append(f"Late in flight: {late}.")
    if not flight.whole:
        doubt.append("The flight's end is missing: its recorder was killed, or the file was cut off.")
    if flight.missing:
        doubt.append(f"{counted(flight.missing, 'step')} of the loop are not in the flight's file.")
    if not all(flown.same for flown in flight.bundles):
        others = dict.fromkeys(f"{_called(flown)}, {flown.kin}" for flown in flight.bundles if not flown.same)
        doubt.append(f"The flight is not all of this page's bundle: {'; '.join(others)}.")
    if replay is not None and replay.passed:
        (doubt if replay.different else good).append(f"The flight was taken again {_again(again)}.")
    if parting is not None and parting.result.passed:
        good.append(f"In flight {parting.target} does what the reference does, within the tolerance of its precision.")
    if again.replay is None:
        doubt.append(f"The flight was not taken again: {again.why_not}.")
    return [
        *(line("bad", text) for text in bad),
        *(line("open", text) for text in doubt),
        *(line("good", text) for text in good),
    ]


def facts(flight: FlightView, again: Again) -> list[tuple[str, str]]:
    """What flew, where, when and how, in lines with a name."""
    header = flight.header
    faster = f", actions at {header.rate * header.ticks:g} Hz" if header.ticks > 1 else ""
    reached = "not known" if flight.reached is None else f"{three_digits(flight.reached)} Hz"
    without = flight.steps - flight.stepped
    late = counted(flight.missed, "missed deadline")
    found = [
        ("flight", flight.name),
        ("when", f"{flight.began:%Y-%m-%d %H:%M:%S} UTC, for {clock(flight.duration)}"),
        ("where", header.place.machine),
        *(("flown", f"{counted(flown.steps, 'step')}: {_called(flown)}, {flown.kin}") for flown in flight.bundles),
        ("rate", f"asked for {header.rate:g} Hz{faster}, reached {reached}"),
        (
            "steps",
            f"{flight.steps:,} in the file, {without:,} of them without a step of the policy; {flight.missing:,} are "
            f"missing from it",
        ),
        ("episodes", f"{flight.episodes:,}"),
        ("latency", f"{_times(flight.latency_in_all)}; {late}"),
        ("faults", ", ".join(f"{count.kind} {count.steps:,}" for count in flight.faults) or "none"),
        ("file", "whole" if flight.whole else "cut off: its end is missing"),
    ]
    if again.replay is not None:
        found.append(("taken again", _again(again)))
    if again.parting is not None:
        parting = again.parting
        found.append(("beside the reference", f"{parting.reference}: {parting.target} {_parted(parting)}"))
    elif again.why_not:
        found.append(("beside the reference", f"not compared: {again.why_not}"))
    return found


def _times(seconds: Floats) -> str:
    """Quantiles of a time, in words."""
    _, p50, p99, most = 1e3 * seconds
    times = (three_digits(ms) for ms in (p50, p99, most))
    return "p50 {} ms, p99 {} ms, largest {} ms".format(*times) if np.isfinite(most) else "none was measured"


def _called(flown: Flown) -> str:
    header = flown.header
    artifact = f", artifact {header.digest[:12]}" if header.digest else ""
    threads = f", {counted(header.threads, 'thread')}" if header.threads else ""
    name = header.bundle or "a policy without a bundle"
    return f"{name} ({header.target} {header.precision}{threads}{artifact})"


def _rate(flight: FlightView) -> str:
    return f"{flight.header.rate * flight.header.ticks:g} Hz"


def _again(again: Again) -> str:
    """On what a flight was taken again, how much of it, and whether it did the same."""
    replay = again.replay
    assert replay is not None
    instead = f", not on {again.instead_of}, which flew and is not here" if again.instead_of else ""
    which = f"{'all' if again.whole else 'the first'} {counted(replay.steps, 'step')} that can be"
    if not replay.different:
        return f"on {replay.target}{instead}, {which}: every action is the recorded one, to the bit"
    why = "" if replay.same else f"; what flew was {replay.flown}, whose bits need not be the same"
    return (
        f"on {replay.target}{instead}, {which}: {replay.different:,} have another action than was recorded, by "
        f"{replay.largest:.2g} at most, the first is step {replay.first:,}{why}"
    )


def _parted(parting: Parting) -> str:
    """Where a target and the reference part, in words."""
    result, at = parting.result, parting.worst
    relative = "relative error" if parting.tolerance.relative else "error"
    parts = [
        f"has its largest {relative}, {parting.errors[at]:.2g}, at step {parting.numbers[at]:,} (tolerance "
        f"{parting.tolerance.logit:g})"
    ]
    if result.actions:
        parts.append(f"{result.actions_different:,} of {counted(result.actions, 'action value')} differ")
    first = parting.first
    where = "they part nowhere" if first is None else f"they part first at step {parting.numbers[first]:,}"
    return ", ".join([*parts, where])


def _faults(flight: FlightView) -> Table:
    rows = [
        (
            Cell(shortened(count.kind), "text"),
            Cell(_share(count.steps, flight.steps)),
            Cell(f"{count.coasted:,}"),
            Cell(f"{count.steps - count.coasted:,}"),
            Cell(f"{count.longest:,}"),
            Cell(f"{count.first:,}"),
            Cell(f"{count.last:,}"),
        )
        for count in flight.faults[:MOST_ROWS]
    ]
    columns = ("fault", "steps", "policy stepped on", "held", "longest in a row", "first step", "last step")
    return Table("Faults", columns, tuple(rows))


def _actions(flight: FlightView) -> Table:
    columns = ("element", "unit", "clamped by a limit", "changed by safety", "chosen", "sent")
    shown = most_held_back(flight.elements, MOST_ROWS) if flight.steps else []
    return Table("Actions", columns, tuple(_element(element) for element in shown))


def _element(element: Element) -> tuple[Cell, ...]:
    return (
        Cell(element.name, "text"),
        Cell(element.unit, "text"),
        *(Cell(_share(int(counts.sum()), int(element.counts.sum()))) for counts in (element.clamped, element.changed)),
        Cell(_range(element.chosen)),
        Cell("-" if element.sent is None else _range(element.sent)),
    )


def _range(of: Range) -> str:
    there = np.isfinite(of.least)
    return f"{of.least[there].min():.4g} to {of.most[there].max():.4g}" if there.any() else "-"


def _share(count: int, of: int) -> str:
    return f"{count:,} ({100 * count / of:.2g}%)" if count and of else f"{count:,}"


def _events(flight: FlightView) -> Table:
    """The first and the last, and those that are rare and weigh."""
    count = len(flight.events)
    ends = {*range(min(FIRST_AND_LAST, count)), *range(max(count - FIRST_AND_LAST, 0), count)}
    rare = [i for i, happened in enumerate(flight.events) if happened.event.kind in (SWAPPED, STOPPED)]
    rows: list[tuple[Cell, ...]] = []
    before = -1
    for place in sorted(ends | set(rare[:FIRST_AND_LAST])):
        if place > before + 1:
            left_out = counted(place - before - 1, "more event")
            rows.append((Cell(""), Cell(""), Cell("...", "text"), Cell(left_out, "wrap")))
        rows.append(_event(flight.events[place]))
        before = place
    return Table("Events", ("time", "step", "event", "in words"), tuple(rows))


def _event(happened: Happened) -> tuple[Cell, ...]:
    event = happened.event
    bad = " bad" if event.kind == STOPPED else ""
    return (
        Cell(clock(happened.time), bad.strip()),
        Cell(f"{event.step:,}", bad.strip()),
        Cell(shortened(event.kind), f"text{bad}"),
        Cell(shortened(event.text), f"wrap{bad}"),
    )


def _notes(flight: FlightView) -> list[str]:
    notes = [
        "Times of the flight are seconds since its loop began, by a clock that nobody sets. Steps that are counted as "
        "late are those that ended after the next action was due."
    ]
    if len(flight.elements) > MOST_ROWS:
        notes.append(
            f"Of {len(flight.elements):,} elements of the actions the table has the {MOST_ROWS} that were held back "
            f"most often, then the first."
        )
    return notes


def clock(seconds: float) -> str:
    """A time as hours, minutes and seconds: ``0:01:02.50``."""
    hundredths = round(100 * seconds)
    minutes, rest = divmod(hundredths, 6000)
    return f"{minutes // 60}:{minutes % 60:02}:{rest // 100:02}.{rest % 100:02}"


def shortened(text: str) -> str:
    """Words of a file, as one line that is not too long."""
    line_of = " ".join(text.split())
    return line_of if len(line_of) <= MOST_TEXT else f"{line_of[: MOST_TEXT - 4]} ..."
