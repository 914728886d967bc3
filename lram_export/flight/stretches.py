"""What of a flight can be taken again: steps in a row from the start of an episode, whose state is known so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lram_export.flight.events import RESUMED
from lram_export.flight.header import FlightHeader
from lram_export.flight.reader import Flight
from lram_export.flight.steps import FlightStep


@dataclass(frozen=True)
class Taken:
    """A step that can be taken again. ``header`` says which policy took it, ``starts`` whether every row starts an
    episode with it."""

    step: FlightStep
    header: FlightHeader
    starts: bool


def to_take(flight: Flight, weights: str | None = None) -> Iterator[Taken]:
    """All steps of a flight that can be taken again, in order; by ``weights`` only those that were flown with them.

    After a step that is missing, or another bundle that took over, none can until the next episode: the state is not
    known. Steps of the loop at which the policy took none change no state, and are left out.
    """
    known, before = False, None
    for step in flight.steps():
        if before is not None and (step.step != before.step + 1 or step.bundle != before.bundle):
            known = False
        before = step
        if not step.stepped or not step.bundle < len(flight.headers):
            continue
        starts = bool(step.inputs["is_first"].all())
        known = known or starts
        header = flight.headers[step.bundle]
        if known and weights in (None, header.weights):
            yield Taken(step, header, starts)


def why_none(flight: Flight) -> str:
    """Why no step of a flight can be taken again, where none can."""
    if any(event.kind == RESUMED for event in flight.events):
        return "it goes on with an episode that began before it (--resume), and none begins in it"
    return "no episode begins in it"
