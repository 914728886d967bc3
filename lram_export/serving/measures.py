"""How a server went, in numbers."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

KEPT = 100_000
"""Of every time, the last so many are kept for percentiles."""


def _times() -> deque[float]:
    return deque(maxlen=KEPT)


@dataclass
class Measures:
    """Counts since the server began.

    Attributes:
        steps: that robots made.
        refused: of them, those that were refused.
        repeated: calls that were sent again, and answered as before.
        sessions: that were opened.
        expired: of them, those whose robots fell silent.
        turned_away: calls without a token that is known.
        malformed: calls that are no messages of the protocol, or none that came to an end.
        batches: rows of a step of the engine -> how often.
        waited: seconds from a robot's step to the engine's.
        computed: seconds of the engine's steps.
        answered: seconds from a robot's message to its answer.
    """

    steps: int = 0
    refused: int = 0
    repeated: int = 0
    sessions: int = 0
    expired: int = 0
    turned_away: int = 0
    malformed: int = 0
    batches: Counter[int] = field(default_factory=Counter)
    waited: deque[float] = field(default_factory=_times)
    computed: deque[float] = field(default_factory=_times)
    answered: deque[float] = field(default_factory=_times)

    @property
    def mean_batch(self) -> float:
        """Rows per step of the engine; 0 before the first."""
        return sum(size * times for size, times in self.batches.items()) / max(sum(self.batches.values()), 1)

    def times(self) -> dict[str, dict[str, float]]:
        """Milliseconds of each of the times: p50, p99 and the largest of the last :data:`KEPT`; none before a step."""
        found = {}
        for name in ("waited", "computed", "answered"):
            seconds = np.array(getattr(self, name))
            if seconds.size:
                p50, p99 = np.percentile(1e3 * seconds, (50, 99))
                found[name] = {"p50_ms": float(p50), "p99_ms": float(p99), "max_ms": float(1e3 * seconds.max())}
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        names = ("steps", "refused", "repeated", "sessions", "expired", "turned_away", "malformed")
        counts = {name: getattr(self, name) for name in names}
        batches = {str(size): self.batches[size] for size in sorted(self.batches)}
        return {**counts, "batches": batches, **self.times()}
