"""What else kept the machine busy while something was timed; Linux, None where it cannot be told."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from lram_export.system.machine import available_cpus


@dataclass(frozen=True)
class MachineLoad:
    """CPUs' worth of time that others used of the ``cpus`` this process may use, and that the host gave to other
    machines (``steal``); ``average`` is the load average when it began, before this process added to it."""

    cpus: int
    others: float | None
    steal: float | None
    average: float | None


class LoadWatch:
    """Watches from its construction to :meth:`stop`; child processes of this one that have ended are not others."""

    def __init__(self) -> None:
        self._start, self._own, self._counters = time.monotonic(), _own_seconds(), _cpu_seconds()
        self._average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None

    def stop(self) -> MachineLoad:
        """The load since then."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        others = steal = None
        after = _cpu_seconds()
        if self._counters is not None and after is not None:
            busy, stolen = (b - a for a, b in zip(self._counters, after, strict=True))
            own = _own_seconds() - self._own
            others, steal = max(busy - own, 0.0) / elapsed, max(stolen, 0.0) / elapsed
        return MachineLoad(len(available_cpus()), others, steal, self._average)


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _cpu_seconds() -> tuple[float, float] | None:
    """Seconds of work and of steal on the available CPUs since the machine started."""
    names = {f"cpu{number}" for number in available_cpus()}
    busy = stolen = 0.0
    try:
        for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
            name, *fields = line.split()
            if name in names:
                user, nice, system, _idle, _wait, irq, softirq, steal = (int(field) for field in fields[:8])
                busy += user + nice + system + irq + softirq
                stolen += steal
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    return busy / ticks, stolen / ticks
