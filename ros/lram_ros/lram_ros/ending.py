"""A clock that nobody waits for who is to end, however long its ticks are."""

from __future__ import annotations

import time
from collections.abc import Callable

from lram_export.loop.clock import Clock

LONGEST_NAP = 0.1
"""Seconds between two looks at whether the loop is to end."""


class EndingClock(Clock):
    """Ticks in real time."""

    def __init__(self, period: float, is_ending: Callable[[], bool]) -> None:
        """``period`` in seconds."""
        self._is_ending = is_ending
        super().__init__(period)

    def sleep(self, seconds: float) -> None:  # type: ignore[override]
        """Let so many of them pass, or fewer where the loop is to end."""
        until = self.now() + seconds
        while (left := until - self.now()) > 0 and not self._is_ending():
            time.sleep(min(left, LONGEST_NAP))

    def wait(self, left: int = 1) -> int:
        """Wait for the next tick; where the loop is to end the others of the step are left out, not sent at once."""
        passed = super().wait(left)
        return left if self._is_ending() else passed
