"""How often a second a policy acts, and its controller is told: what is said of a rate that is not the trained one."""

from __future__ import annotations

import math

from lram_export.errors import UsageError

SAME = 1e-6
"""How far rates may differ, relatively, and be the same: a third of 100 Hz cannot be written down."""
MOST_TICKS = 10_000
"""Of a controller per step."""
LONG_PERIOD = 0.005
"""Seconds between two steps from which on threads sleep in between: to wake them takes some 40 microseconds, a
hundredth of it, and to keep them awake a core each."""


def other_rate(name: str, trained: float | None, rate: float | None, done: str) -> str | None:
    """The line that warns of a rate that is not the one a policy was trained at; None where there is nothing to say.

    ``done`` is what is done at that rate, such as ``measured``.
    """
    if trained is None or rate is None or math.isclose(trained, rate, rel_tol=SAME):
        return None
    return f"{name} was trained at {trained:g} Hz, {done} at {rate:g} Hz"


def may_spin(rate: float | None) -> bool:
    """Whether threads may keep looking for work between two steps at a rate in Hz; None: as fast as they can follow.

    By the rate alone: it is decided when a policy is loaded, and no runtime lets it be changed afterwards.
    """
    return rate is None or 1 / rate < LONG_PERIOD


def ticks_per_step(rate: float, controller_rate: float) -> int:
    """How often a controller is told something per step of the policy; raises UsageError unless a whole number."""
    ratio = controller_rate / rate
    ticks = round(min(ratio, MOST_TICKS))
    if ticks < 1 or not math.isclose(ratio, ticks, rel_tol=SAME):
        raise UsageError(
            f"controller_rate: expected a whole multiple of the policy's {rate:g} Hz, 1 to {MOST_TICKS} times, "
            f"got {controller_rate:g} Hz"
        )
    return ticks
