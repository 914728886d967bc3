"""What a robot may be told, whatever went wrong: found out where its motors are."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sockets.arm import Arm

from tests.loop.rig.subject import CHOSEN_BY, JOINTS, MOST_CHANGE, REACH, SEEN, STEP, VERSION

KEPT = 2000
GOAL_STEPS = 60
"""Readings that a goal stands for; it is beyond the limits of the targets."""

Values = NDArray[np.float32]


@dataclass
class Verdict:
    """What a robot was told.

    Attributes:
        wrong: what must never be, in lines; the first hundred of them.
        commands: that moved it.
        oldest: seconds of the oldest reading that one of them was chosen by.
        longest: seconds between two of them that came without a stop between.
        versions: of the bundles that chose them, in their order, each with its number of commands.
        steps: the policy's own count at the last of them.
        resets: that it was asked for.
        stops: why the motors stopped by themselves.
    """

    wrong: list[str] = field(default_factory=list)
    commands: int = 0
    oldest: float = 0.0
    longest: float = 0.0
    versions: Counter[int] = field(default_factory=Counter)
    steps: int = 0
    resets: int = 0
    stops: Counter[str] = field(default_factory=Counter)


class JudgedArm:
    """An arm that looks at every command before it obeys. For :class:`sockets.server.Server`.

    Attributes:
        verdict: what it found.
        sent_at: when the command that comes now was sent.
    """

    def __init__(self, stale: float, now: Callable[[], float] = time.monotonic) -> None:
        """``stale``: seconds that the reading of a command may be old."""
        self.motors, self.done = JOINTS + 3, False
        self.verdict, self.sent_at = Verdict(), 0.0
        self._arm, self._stale, self._now = Arm(JOINTS, now=now), stale, now
        self._stamp = 0
        self._read_at: OrderedDict[int, float] = OrderedDict()
        self._told = np.zeros(self.motors, np.float32)
        self._told_at: float | None = None

    @property
    def episodes(self) -> int:
        """Begun so far."""
        return self._arm.episodes

    def reset(self) -> None:
        """An episode begins where the arm is."""
        self.stop()
        self._arm.reset()
        self.verdict.resets += 1

    def observe(self) -> Values:
        """Positions, goals, and the number of the reading."""
        self._stamp += 1
        self._read_at[self._stamp] = self._now()
        if len(self._read_at) > KEPT:
            self._read_at.popitem(last=False)
        goal = (SEEN - 1.0) * (-1 if self._stamp // GOAL_STEPS % 2 else 1)
        position = self._arm.observe()[:JOINTS]
        return np.concatenate([position, np.float32([goal] * JOINTS), np.float32([self._stamp])])

    def act(self, action: Values) -> float:
        """Judge it, then obey."""
        found, now = self.verdict, self._now()
        targets, before = action[:JOINTS].astype(float), self.holds()[:JOINTS].astype(float)
        if (np.abs(targets) > REACH).any():
            self._is_wrong(f"beyond the limits: {targets}")
        if (np.abs(targets - before) > MOST_CHANGE + 1e-6).any():
            self._is_wrong(f"from {before} to {targets} at once")
        read_at = self._read_at.get(int(action[CHOSEN_BY]))
        age = float("inf") if read_at is None else self.sent_at - read_at
        if age > self._stale:
            self._is_wrong(f"chosen by a reading of {1000 * age:.0f} ms ago")
        found.commands, found.oldest = found.commands + 1, max(found.oldest, age)
        if self._told_at is not None:
            found.longest = max(found.longest, now - self._told_at)
        found.versions[int(action[VERSION])] += 1
        found.steps = int(action[STEP])
        self._told, self._told_at = action.copy(), now
        return self._arm.act(action[:JOINTS])

    def holds(self) -> Values:
        """Targets as they are; beside them what it was told last."""
        return np.concatenate([self._arm.holds(), self._told[JOINTS:]])

    def stop(self) -> None:
        """Stay where it is."""
        self._arm.stop()
        self._told_at = None

    def go_on(self) -> None:
        """Time goes on."""
        self._arm.go_on()

    def _is_wrong(self, what: str) -> None:
        if len(self.verdict.wrong) < 100:
            self.verdict.wrong.append(f"command {self.verdict.commands}: {what}")
