"""The clock of a simulation, which may be slow, stand still, or begin anew."""

from __future__ import annotations

import time
from collections.abc import Callable

from lram_ros.ending import EndingClock

NAP = 0.0005
"""Real seconds between two looks at the clock."""


class SimulatedClock(EndingClock):
    """Ticks by a clock that somebody else sets."""

    def __init__(self, period: float, now: Callable[[], float], is_ending: Callable[[], bool]) -> None:
        """``period`` in the simulation's seconds."""
        self._now = now
        super().__init__(period, is_ending)

    def now(self) -> float:  # type: ignore[override]
        """The simulation's seconds."""
        return self._now()

    def sleep(self, seconds: float) -> None:  # type: ignore[override]
        """Let so many of them pass; where the clock is set back, the ticks begin anew from there."""
        before = begun = self._now()
        while before < begun + seconds and not self._is_ending():
            time.sleep(NAP)
            now = self._now()
            if now < before:
                self.start()
                return
            before = now

    def wait(self, left: int = 1) -> int:
        """Wait for the next tick; where the clock was set back since the last, the ticks begin anew from there."""
        if self._now() < self._due - self.period:
            self.start()
        return super().wait(left)
