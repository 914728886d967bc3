"""Where and how the loop's thread runs: at a real-time priority, on a core of its own. All other threads are kept out.

Linux schedules threads: to ask something for process 0 is to ask it for the thread that asks.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lram_export.describe import counted
from lram_export.errors import UsageError, describe
from lram_export.system.machine import available_cpus

LOG = logging.getLogger("lram_export.loop")
PRIORITIES = (1, 99)
"""Lowest and highest of Linux's real-time priorities."""


@dataclass(frozen=True)
class Scheduling:
    """What is asked for the loop's thread.

    Attributes:
        priority: real-time priority (SCHED_FIFO), 1 to 99; None: as it is.
        cpu: the core that it runs on, which the other threads of the process leave to it; None: any.
        if_permitted: go on without a priority that is not allowed here, and say so; else it is an error.
    """

    priority: int | None = None
    cpu: int | None = None
    if_permitted: bool = False

    def check(self) -> None:
        """Find out whether it can be had; nothing is left of that.

        Raises:
            UsageError: naming the option; no such priority or core, or a priority that is not allowed here.
        """
        if self.priority is None and self.if_permitted:
            raise UsageError("--if-permitted: only with --priority")
        cpus = available_cpus()
        if self.cpu is not None and not _may_run_on(self.cpu, cpus):
            raise UsageError(f"--cpu: this process may run on {_cores(cpus)}, got {self.cpu}")
        if self.priority is None:
            return
        low, high = PRIORITIES
        if not low <= self.priority <= high:
            raise UsageError(f"--priority: expected {low} to {high}, got {self.priority}")
        refusal = _refusal(self.priority)
        if refusal is not None and not self.if_permitted:
            raise UsageError(
                f"--priority: {self.priority} is not allowed here ({refusal}): raise LimitRTPRIO= of a service "
                f"(ulimit -r), or go on without it: --if-permitted"
            )


class LoopThread:
    """The thread that loops, while it loops: :meth:`enter` and :meth:`leave` are called by it."""

    def __init__(self, scheduling: Scheduling) -> None:
        """Change nothing yet."""
        self._asked = scheduling
        self._cpus = self._others = available_cpus()
        self._policy: tuple[int, os.sched_param] | None = None
        self._moved: dict[int, set[int]] = {}

    def enter(self) -> None:
        """Give the calling thread what is asked for it, keep the others off its core, and log one line.

        Raises:
            UsageError: it could be had when it was checked, and cannot any more.
        """
        asked, got = self._asked, []
        if asked.priority is not None and self._prioritize(asked.priority):
            got.append(f"at real-time priority {asked.priority}")
        if asked.cpu is not None:
            self._pin(asked.cpu)
            got.append(f"on core {asked.cpu}")
        if got:
            LOG.info("the loop's thread runs %s; %s", " ".join(got), self._rest())

    def leave(self) -> None:
        """Put everything back as it was."""
        if self._policy is not None:
            os.sched_setscheduler(0, *self._policy)
        if self._asked.cpu is not None:
            os.sched_setaffinity(0, self._cpus)
        for thread in self._moved.keys() & set(other_threads()):
            _move(thread, self._moved[thread])

    def aside(self) -> None:
        """Keep off the loop's core: for threads that the loop's thread starts, which have its core but no priority."""
        if self._asked.cpu is not None:
            os.sched_setaffinity(0, self._others)

    def _prioritize(self, priority: int) -> bool:
        before = _now()
        try:
            os.sched_setscheduler(0, *_real_time(priority))
        except OSError as error:
            if not self._asked.if_permitted:
                raise UsageError(f"--priority: {priority} is not allowed any more: {describe(error)}") from None
            LOG.warning(
                "no real-time priority: %d is not allowed here (%s; LimitRTPRIO= of a service, ulimit -r); "
                "the loop goes on without",
                priority,
                error.strerror,
            )
            return False
        self._policy = before
        return True

    def _pin(self, cpu: int) -> None:
        self._cpus = available_cpus()
        self._others = self._cpus - {cpu} or self._cpus
        for thread in other_threads():
            with suppress(ProcessLookupError):  # it has just ended
                own = os.sched_getaffinity(thread)
                if cpu in own and own != {cpu}:
                    self._moved[thread] = own
                    _move(thread, own - {cpu})
        try:
            os.sched_setaffinity(0, {cpu})
        except OSError as error:
            raise UsageError(f"--cpu: this thread may not run on {cpu} any more: {describe(error)}") from None

    def _rest(self) -> str:
        """What became of the other threads."""
        threads = other_threads()
        if not threads:
            return "this process has no other threads"
        cpus: set[int] = set()
        for thread in threads:
            with suppress(ProcessLookupError):
                cpus |= os.sched_getaffinity(thread)
        keep = "keeps its" if len(threads) == 1 else "keep their"
        return f"{counted(len(threads), 'other thread')} of this process {keep} priority, on {_cores(cpus)}"


def other_threads() -> list[int]:
    """Those of this process beside the one that asks, by the system's numbers."""
    own = threading.get_native_id()
    return sorted({int(task.name) for task in Path("/proc/self/task").iterdir()} - {own})


def _real_time(priority: int) -> tuple[int, os.sched_param]:
    """First in, first out; and threads that this one starts do not inherit it."""
    return os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority)


def _now() -> tuple[int, os.sched_param]:
    # the flag is not taken back, for which a thread would need more rights than to set it
    return os.sched_getscheduler(0) | os.SCHED_RESET_ON_FORK, os.sched_getparam(0)


def _may_run_on(cpu: int, cpus: set[int]) -> bool:
    """Tried, and taken back: a core that is kept free (`isolcpus=`) is in no process's set, and can be had."""
    if cpu in cpus:
        return True
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError:
        return False
    os.sched_setaffinity(0, cpus)
    return True


def _refusal(priority: int) -> str | None:
    """Why the calling thread may not have a real-time priority; None if it may. Tried, and taken back."""
    before = _now()
    try:
        os.sched_setscheduler(0, *_real_time(priority))
    except OSError as error:
        return error.strerror
    os.sched_setscheduler(0, *before)
    return None


def _move(thread: int, cpus: set[int]) -> None:
    with suppress(OSError):  # it has just ended, or may not run there any more
        os.sched_setaffinity(thread, cpus)


def _cores(cpus: Iterable[int]) -> str:
    """Numbers of cores as people write them: "core 3", "cores 0-2, 5"."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][-1] == cpu - 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    text = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"core{'' if text.isdigit() else 's'} {text}"
