"""What a flight was like, in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.flight.events import EPISODE, RESUMED, STOPPED
from lram_export.flight.reader import Flight
from lram_export.flight.stretches import to_take


@dataclass(frozen=True)
class FlightSummary:
    """Numbers of a flight.

    Attributes:
        seconds: from its first reading to its last.
        steps: that are in the file; ``missing`` are not.
        replayable: steps that can be taken again.
        episodes: that began, or were gone on with.
        missed: deadlines.
        faults: kind -> steps that had it.
        clamped: by name of an action: numbers of it that a limit clamped.
        held: by name of an action: steps at which safety held it back.
        latency: (p50, p99, largest) seconds from a reading to its action; None where there was none.
        step: the same of the policy's step alone.
        stopped: why the robot had to be stopped; "": it had not.
    """

    seconds: float
    steps: int
    missing: int
    replayable: int
    episodes: int
    missed: int
    faults: Counter[str]
    clamped: Counter[str]
    held: Counter[str]
    latency: tuple[float, float, float] | None
    step: tuple[float, float, float] | None
    stopped: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; times in milliseconds."""
        return {
            "seconds": self.seconds,
            "steps": self.steps,
            "missing_steps": self.missing,
            "replayable_steps": self.replayable,
            "episodes": self.episodes,
            "missed_deadlines": self.missed,
            "faults": dict(self.faults),
            "clamped": dict(self.clamped),
            "held_by_safety": dict(self.held),
            "latency_ms": None if self.latency is None else [1000 * value for value in self.latency],
            "step_ms": None if self.step is None else [1000 * value for value in self.step],
            "stopped": self.stopped,
        }


def summary(flight: Flight) -> FlightSummary:
    """Count what is in a flight."""
    faults: Counter[str] = Counter()
    clamped: Counter[str] = Counter()
    held: Counter[str] = Counter()
    times = np.full((flight.count, 3), np.nan)  # of the reading, to the action, of the policy's step
    missed = 0
    for number, step in enumerate(flight.steps()):
        times[number] = step.time, step.latency, step.seconds
        missed = step.missed
        if step.fault:
            faults[step.fault] += 1
        for name, elements in step.clamped.items():
            clamped[name] += int(elements.sum())
        held.update(list(step.chosen))
    kinds = Counter(event.kind for event in flight.events)
    return FlightSummary(
        seconds=float(times[-1, 0] - times[0, 0]) if flight.count else 0.0,
        steps=flight.count,
        missing=flight.missing,
        replayable=sum(1 for _ in to_take(flight)),
        episodes=kinds[EPISODE] + kinds[RESUMED],
        missed=missed,
        faults=faults,
        clamped=clamped,
        held=held,
        latency=_percentiles(times[:, 1]),
        step=_percentiles(times[:, 2]),
        stopped=next((event.text for event in flight.events if event.kind == STOPPED), ""),
    )


def _percentiles(values: NDArray[np.float64]) -> tuple[float, float, float] | None:
    found = values[np.isfinite(values)]
    if not found.size:
        return None
    p50, p99 = np.percentile(found, (50, 99))
    return float(p50), float(p99), float(found.max())
