"""A robot's process that goes wrong when it is told to, see :class:`Fault`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sockets.server import Server
from sockets.wire import Kind, Line, Message, listening

from tests.loop.rig.judge import JudgedArm

NAN, OUT, SHAPE, FROZEN, SILENT = "not finite", "out of limits", "unusable", "frozen", "silent"
LATE, LATE_TAKEN, HANG, DISCONNECT = "late", "told late", "hang", "disconnect"
MARGIN = 0.03
"""Seconds between a reading and the moment a loop knows of it, and between its decision and its message."""

READINGS = (NAN, OUT, SHAPE, FROZEN, SILENT)
"""Their amount is a number of readings; of the others it is milliseconds."""

COUNTED = (NAN, OUT, SHAPE, FROZEN, "missing", "not sent")
"""Kinds as a loop calls them."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong, from which question for a reading on, how long.

    ``late``: the answer to one question comes later than others that follow it; ``told late``: the same of the answer
    to an action, which was obeyed at once; ``hang``: the whole process does nothing; ``disconnect``: nobody listens.
    """

    at: int
    kind: str
    amount: int = 1


@dataclass(frozen=True)
class Tolerance:
    """What a loop is told to put up with, and the robot.

    Attributes:
        rate: steps per second, Hz.
        bridge: steps in a row with a fault.
        frozen: readings in a row that are the same.
        timeout: seconds that the loop waits for an answer.
        watchdog: seconds that the motors go on without a command.
        oldest: seconds that the reading of an action may be old, by the robot's clock.
    """

    rate: float = 200.0
    bridge: int = 40
    frozen: int = 3
    timeout: float = 0.01
    watchdog: float = 1.0
    oldest: float = 0.4

    @property
    def stale(self) -> float:
        """Seconds that a loop lets an action be old, see docs/robot.md."""
        return max((self.bridge + 2) / self.rate, 0.05)

    @property
    def options(self) -> tuple[str, ...]:
        """Of `lram-export loop`."""
        return ("--rate", f"{self.rate:g}", "--bridge", f"{self.bridge}", "--frozen", f"{self.frozen}")

    @property
    def no_command(self) -> str:
        """What the robot says where none came for too long."""
        return f"no command for {1000 * self.watchdog:g} ms"


class FaultyServer(Server):
    """Faults happen in their order.

    Attributes:
        arm: what it owns.
        tolerance: of it and of the loop.
        address: where it listens.
        asked: questions for a reading so far.
        injected: kind -> how many.
        expected: kind, as a loop calls it -> how many faults it has to count. Of readings those that it had: an action
            says which was the newest. More may be missing or not sent, on a machine that does something else meanwhile.
        refused: reason -> actions that were not obeyed.
    """

    def __init__(self, address: str, tolerance: Tolerance, faults: Iterable[Fault] = ()) -> None:
        self.arm, self.tolerance, self.address = (
            JudgedArm(tolerance.stale + tolerance.timeout + MARGIN),
            tolerance,
            address,
        )
        super().__init__(address, self.arm, tolerance.watchdog, tolerance.oldest, self._hear_of)
        self.asked = 0
        self.injected: Counter[str] = Counter()
        self.expected: Counter[str] = Counter()
        self.refused: Counter[int] = Counter()
        self._faults = sorted(faults, key=lambda fault: fault.at)
        self._current: Fault | None = None
        self._left = self._same = 0
        self._spoiled = ""
        self._unheard: Message | None = None
        self._late: list[tuple[float, Line, Message]] = []
        self._lateness: dict[Kind, float] = {}
        self._away_until = 0.0
        self._last = self._heard = np.zeros(0, np.float32)

    def inject(self, fault: Fault) -> None:
        """One more."""
        self._faults = sorted([*self._faults, fault], key=lambda fault: fault.at)

    def poll(self, seconds: float) -> None:
        """As without faults, but what is late comes when it is due, and who is away comes back."""
        now = time.monotonic()
        if self._away_until:
            if now < self._away_until:
                time.sleep(min(seconds, self._away_until - now))
                return
            self._away_until = 0.0
            self._listener = listening(self.address)
        for due, line, answer in [entry for entry in self._late if entry[0] <= now]:
            self._late.remove((due, line, answer))
            if line is self._line:
                super().reply(answer)
        super().poll(min([seconds, *(due - now for due, _, _ in self._late)]))

    def answer(self, question: Message) -> Message:
        """The right answer, or what a fault makes of it."""
        if question.kind == Kind.OBSERVE:
            self.asked += 1
            self._begin_fault()
        self.arm.sent_at = question.sent / 1e9
        if question.kind == Kind.ACT and self._unheard is not None and question.about == self._unheard.number:
            self._expect(self._unheard.values)
            self._unheard = None
        answer = super().answer(question)
        if question.kind == Kind.OBSERVE:
            answer = self._spoilt(answer)
            self._last, self._unheard = answer.values, answer
        if answer.kind == Kind.REFUSED:
            self.refused[answer.reason] += 1
        return answer

    def reply(self, answer: Message) -> None:
        """Now, later, or never."""
        seconds = self._lateness.pop(answer.kind, 0.0)
        if self._line is None or seconds == float("inf"):
            return
        if seconds:
            self._late.append((time.monotonic() + seconds, self._line, answer))
        else:
            super().reply(answer)

    def close(self) -> None:
        """For good."""
        super().close()
        Path(self.address.removeprefix("unix:")).unlink(missing_ok=True)

    def _begin_fault(self) -> None:
        if self._left or not self._faults or self._faults[0].at > self.asked:
            return
        fault = self._faults.pop(0)
        seconds = fault.amount / 1000
        self.injected[fault.kind] += 1
        if fault.kind in READINGS:
            self._current, self._left = fault, fault.amount
            return
        if seconds >= 2 * self.tolerance.timeout:  # between once and twice it depends on how the loop asks
            self.expected["not sent" if fault.kind == LATE_TAKEN else "missing"] += 1
        if fault.kind == HANG:
            time.sleep(seconds)
        elif fault.kind == DISCONNECT:
            self.close()
            self._away_until = time.monotonic() + seconds
        else:
            self._lateness[Kind.READING if fault.kind == LATE else Kind.TAKEN] = seconds

    def _spoilt(self, reading: Message) -> Message:
        self._spoiled = ""
        if not self._left or self._current is None:
            return reading
        self._left -= 1
        values, kind = reading.values.copy(), self._current.kind
        if kind == NAN:
            values[0] = np.nan
        elif kind == OUT:
            values[1] = 100.0
        elif kind == SHAPE:
            values = values[:-1]
        elif kind == FROZEN:
            values = self._last
        else:
            self._lateness[Kind.READING] = float("inf")
            self.expected["missing"] += 1
        self._spoiled = kind
        return Message(**{**reading.__dict__, "values": values})

    def _expect(self, values: NDArray[np.float32]) -> None:
        """What a loop that has this reading has to count."""
        if self._spoiled in (NAN, OUT, SHAPE):
            self.expected[self._spoiled] += 1
            return
        self._same = self._same + 1 if np.array_equal(values, self._heard) else 0
        self._heard = values
        if self._same >= self.tolerance.frozen:
            self.expected[FROZEN] += 1

    def _hear_of(self, line: str) -> None:
        if line.startswith("stopped: "):
            self.arm.verdict.stops[line.removeprefix("stopped: ")] += 1


def uncounted(expected: Counter[str], counted: Counter[str]) -> list[str]:
    """Where a loop did not count as it has to, in lines."""
    unsure = counted["not sent"]  # of whose actions, and so of whose readings, the robot does not know
    wrong = [f"{kind}: {expected[kind]}, counted {counted[kind]}" for kind in COUNTED if expected[kind] > counted[kind]]
    more = [kind for kind in (NAN, OUT, SHAPE, FROZEN) if counted[kind] > expected[kind] + unsure]
    return wrong + [f"{kind}: {expected[kind]}, counted {counted[kind]}" for kind in more]
