"""What a page shows of a flight: numbers over time, in as many bins as a chart has room for, however long it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.bundle import Bundle
from lram_export.episodes.flights import check_flown
from lram_export.errors import LramError
from lram_export.flight.events import EPISODE, RESUMED, STOPPED, SWAPPED, FlightEvent
from lram_export.flight.header import FlightHeader
from lram_export.flight.reader import Flight
from lram_export.report.bins import Bins, Counted, Floats, Spread, quantiles
from lram_export.report.flight_actions import ActionSeen, Element
from lram_export.spec.interface import actions_of

SCALARS = {
    "step": np.int64, "time": np.float64, "seconds": np.float64, "latency": np.float64, "missed": np.int64,
    "bundle": np.int64, "stepped": np.bool_,
}  # fmt: skip
"""What of every step is kept."""
MOST = 2**60
"""What a file may say that others made, and still be counted with."""


@dataclass(frozen=True)
class FaultCount:
    """One kind of fault.

    Attributes:
        kind: of the fault.
        steps: that had it.
        coasted: of these, at how many the policy stepped all the same.
        longest: how many in a row, at most.
        first, last: their numbers in the loop.
        so_far: how many there were by the end of every bin, (bins,).
    """

    kind: str
    steps: int
    coasted: int
    longest: int
    first: int
    last: int
    so_far: Counted


@dataclass(frozen=True)
class Flown:
    """A bundle that flew: its header, how many steps, and what it is to the page's bundle, in words."""

    header: FlightHeader
    steps: int
    kin: str
    same: bool


@dataclass(frozen=True)
class Happened:
    """An event, and when: seconds since the loop began, by the clock of the loop."""

    event: FlightEvent
    time: float


@dataclass(frozen=True)
class FlightView:
    """A flight in bins of time.

    Attributes:
        name: of the file.
        began: when, UTC; ``duration``: of what is in the file, seconds.
        bundles: that flew, in order.
        reached: steps per second between two of an episode; None where there are no two.
        steps: in the file; ``stepped``: at which the policy took a step; ``missing``: that are not in it.
        whole: whether the file was closed.
        missed: deadlines.
        edges: of the bins, seconds since the loop began, (bins + 1,).
        latency: seconds from a reading to its action; ``latency_in_all``: its quantiles over the whole flight, (4,).
        policy: seconds of the policy's step.
        missed_so_far, missing_so_far: by the end of every bin, (bins,).
        faults: the most frequent first.
        elements: of all actions.
        events: in order.
    """

    name: str
    began: datetime
    duration: float
    bundles: tuple[Flown, ...]
    reached: float | None
    steps: int
    stepped: int
    missing: int
    whole: bool
    missed: int
    edges: Floats
    latency: Spread
    latency_in_all: Floats
    policy: Spread
    missed_so_far: Counted
    missing_so_far: Counted
    faults: tuple[FaultCount, ...]
    elements: tuple[Element, ...]
    events: tuple[Happened, ...]

    @property
    def header(self) -> FlightHeader:
        """The first bundle's."""
        return self.bundles[0].header

    @property
    def deadline(self) -> float:
        """Seconds from one action to the next."""
        return 1 / (self.header.rate * self.header.ticks)

    @property
    def episodes(self) -> int:
        """That were begun, or gone on with."""
        return len(self.times(EPISODE, RESUMED))

    @property
    def stopped(self) -> str:
        """Why the robot was stopped; "": it was not."""
        return next((h.event.text or "stopped" for h in self.events if h.event.kind == STOPPED), "")

    def times(self, *kinds: str) -> list[float]:
        """When events of some kinds were, seconds since the loop began."""
        return [h.time for h in self.events if h.event.kind in kinds]


def check_flight(bundle: Bundle, flight: Flight) -> None:
    """Raise LramError unless a policy with this bundle's step and weights flew."""
    check_flown(flight, bundle.manifest.spec.with_batch(flight.header.spec.batch_size))
    weights = bundle.manifest.source["sha256"]
    if all(header.weights != weights for header in flight.headers):
        others = flight.header.weights[:12] or "unknown"
        raise LramError(f"{flight.path}: flown with other weights, {others}, than {bundle.path} has, {weights[:12]}")


def view(bundle: Bundle, flight: Flight) -> FlightView:
    """Look at a flight: once at each step, keeping a few numbers of it.

    Raises:
        LramError: a damaged step.
    """
    scalars: dict[str, NDArray[Any]] = {name: np.zeros(flight.count, dtype) for name, dtype in SCALARS.items()}
    actions = [ActionSeen(name, tensor, flight) for name, tensor in actions_of(flight.header.spec).items()]
    faults: dict[str, list[tuple[int, int, bool]]] = {}
    for place, step in enumerate(flight.steps()):
        for name, values in scalars.items():
            values[place] = min(getattr(step, name), MOST)
        if step.fault:
            faults.setdefault(step.fault, []).append((place, step.step, step.stepped))
        for action in actions:
            action.add(step)
    numbers, time, missed = scalars["step"], _clean(scalars["time"]), scalars["missed"]
    bins = Bins(time)
    events = tuple(Happened(event, max((event.at - flight.header.began) / 1e9, 0.0)) for event in flight.events)
    latency = scalars["latency"]
    return FlightView(
        name=flight.path.name,
        began=datetime.fromtimestamp(flight.header.began / 1e9, timezone.utc),
        duration=float(time[-1] - time[0]) if len(time) else 0.0,
        bundles=tuple(_flown(bundle, header, scalars["bundle"]) for header in flight.headers),
        reached=_reached(numbers, time, events),
        steps=len(numbers),
        stepped=int(scalars["stepped"].sum()),
        missing=flight.missing,
        whole=flight.whole,
        missed=int(missed.max(initial=0)),
        edges=bins.edges,
        latency=bins.spread(latency),
        latency_in_all=quantiles(latency),
        policy=bins.spread(scalars["seconds"]),
        missed_so_far=np.append(0, np.maximum.accumulate(missed))[bins.ends],
        missing_so_far=bins.so_far(np.diff(numbers, prepend=-1) - 1),
        faults=tuple(sorted((_fault(kind, at, bins) for kind, at in faults.items()), key=lambda count: -count.steps)),
        elements=tuple(element for action in actions for element in action.elements(bundle.manifest.interface, bins)),
        events=events,
    )


def _clean(time: Floats) -> Floats:
    """Times that only grow, whatever a file says."""
    return np.maximum.accumulate(np.nan_to_num(time, posinf=0.0, neginf=0.0)) if len(time) else time


def _flown(bundle: Bundle, header: FlightHeader, numbers: Counted) -> Flown:
    """``numbers`` are the bundles of all steps."""
    count = int((numbers == header.number).sum())
    own = next((t for t in bundle.targets if bundle.artifact_digest(t) == header.digest), None)
    if own is not None:
        return Flown(header, count, "this very artifact of this page's bundle", True)
    if header.weights == bundle.manifest.source["sha256"]:
        return Flown(header, count, "the weights of this page's bundle, but not an artifact of it", False)
    return Flown(header, count, "other weights than this page's bundle", False)


def _reached(numbers: Counted, time: Floats, events: Sequence[Happened]) -> float | None:
    """Steps per second, less what lies before an episode's first step: there the robot is reset, or waits."""
    first = [h.event.step for h in events if h.event.kind in (EPISODE, RESUMED)]
    inside = (np.diff(numbers) == 1) & ~np.isin(numbers[1:], first)
    seconds = float(np.diff(time)[inside].sum())
    return float(inside.sum()) / seconds if seconds > 0 else None


def _fault(kind: str, found: Sequence[tuple[int, int, bool]], bins: Bins) -> FaultCount:
    """``found``: where in the file, number in the loop, and whether the policy stepped."""
    places, numbers, stepped = (np.array(column) for column in zip(*found, strict=True))
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    runs = np.diff(np.concatenate([[-1], breaks, [len(numbers) - 1]]))
    return FaultCount(
        kind=kind,
        steps=len(numbers),
        coasted=int(stepped.sum()),
        longest=int(runs.max()),
        first=int(numbers[0]),
        last=int(numbers[-1]),
        so_far=np.searchsorted(places, bins.ends).astype(np.int64),
    )


def marks(flight: FlightView) -> list[tuple[float, str]]:
    """What every chart over the flight's time marks: a swap, a stop."""
    return [(h.time, h.event.kind) for h in flight.events if h.event.kind in (SWAPPED, STOPPED)]
