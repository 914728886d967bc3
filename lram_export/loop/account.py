"""How a run of the control loop went, in numbers."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lram_export.describe import counted

KEPT = 100_000
"""Steps whose times are kept for the percentiles: an endless loop knows its last minutes."""


@dataclass
class Account:
    """Counts of a run.

    Attributes:
        steps: of the loop, with or without a result.
        episodes: that were begun.
        missed: deadlines.
        faults: kind of a fault -> steps that had it.
        bridged: steps that were acted on the last good reading, or held the last action.
        stale: actions that were not sent, since what they were chosen by was too old.
        last: seconds of the last step, from its reading to its action.
        largest: seconds of the longest step, from its reading to its action.
    """

    steps: int = 0
    episodes: int = 0
    missed: int = 0
    bridged: int = 0
    stale: int = 0
    last: float = 0.0
    largest: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT), repr=False)

    def add(self, seconds: float) -> None:
        """Count a step and the time it took."""
        self.steps += 1
        self.last, self.largest = seconds, max(self.largest, seconds)
        self._seconds.append(seconds)

    def latest(self, count: int) -> list[float]:
        """Seconds of the last so many steps, the newest first; any thread may ask."""
        return [self._seconds[-1 - i] for i in range(min(count, len(self._seconds)))]

    @property
    def seconds(self) -> NDArray[np.float64]:
        """What each of the last :data:`KEPT` steps took, (N,)."""
        return np.array(self._seconds)

    def __str__(self) -> str:
        parts = []
        if self._seconds:
            p50, p99 = np.percentile(1000 * self.seconds, (50, 99))
            over = f" (of the last {KEPT:,})" if self.steps > KEPT else ""
            parts.append(f"p50 {p50:.2f} ms, p99 {p99:.2f} ms{over}, largest {1000 * self.largest:.2f} ms")
        parts.append(counted(self.missed, "missed deadline"))
        parts.append(counted(self.bridged, "bridged step"))
        if self.faults:
            parts.append("faults: " + ", ".join(f"{kind} {count:,}" for kind, count in self.faults.most_common()))
        if self.stale:
            parts.append(counted(self.stale, "stale action"))
        return ", ".join(parts)
