"""What else kept the machine busy while something was timed; Linux, None where it cannot be told."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
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
    """Watches from its construction to :meth:`stop`; child processes of this one that have ended are not others, nor
    those at work whose process IDs are given."""

    def __init__(self, at_work: Sequence[int] = ()) -> None:
        self._at_work = tuple(at_work)
        self._start, self._own, self._counters = time.monotonic(), self._own_seconds(), _cpu_seconds()
        self._average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None

    def stop(self) -> MachineLoad:
        """The load since then."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        others = steal = None
        after = _cpu_seconds()
        if self._counters is not None and after is not None:
            busy, stolen = (b - a for a, b in zip(self._counters, after, strict=True))
            own = self._own_seconds() - self._own
            others, steal = max(busy - own, 0.0) / elapsed, max(stolen, 0.0) / elapsed
        return MachineLoad(len(available_cpus()), others, steal, self._average)

    def _own_seconds(self) -> float:
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        return own + sum(map(_seconds_of, self._at_work))


def _seconds_of(process: int) -> float:
    """Seconds of work of a process and of its children that have ended; 0 where it has ended: its parent has them."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return 0.0


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
