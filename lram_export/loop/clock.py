"""When the next tick of a control loop is due. Missed deadlines are counted and left out, never made up for.

Another clock, such as a simulation's, is a subclass with other :meth:`Clock.now` and :meth:`Clock.sleep`.
"""

from __future__ import annotations

import time


class Clock:
    """Ticks of one length, by a clock that nobody sets.

    Attributes:
        period: seconds between two ticks.
        missed: how many ticks were due before whoever waits for them came to wait.
    """

    def __init__(self, period: float) -> None:
        self.period, self.missed = period, 0
        self._due = self.now()

    @staticmethod
    def now() -> float:
        """Seconds since some moment."""
        return time.perf_counter()

    @staticmethod
    def sleep(seconds: float) -> None:
        """Let so many of them pass."""
        time.sleep(seconds)

    def start(self) -> None:
        """The first tick is now."""
        self._due = self.now()

    def wait(self, left: int = 1) -> int:
        """Wait for the next tick.

        Args:
            left: how many ticks there are until the next step, which begins a new count: two steps are never closer
                to each other than they should be.

        Returns:
            How many ticks went by, at most ``left``: 1 where it was on time.
        """
        self._due += self.period
        now = self.now()
        if now < self._due:
            self.sleep(self._due - now)
            now = self.now()
            if now < self._due + self.period:
                return 1
        self.missed += 1
        passed = min(1 + int((now - self._due) / self.period), left)
        self._due = now if passed == left else self._due + (passed - 1) * self.period
        return passed
