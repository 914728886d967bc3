"""A robot that is topics, as the control loop talks to it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.loop.control import Ended
from lram_export.loop.robot import NEW_EPISODE
from lram_ros.inlets import Inlet, Joints, NoReadingError
from lram_ros.outlet import Outlet

NAP = 0.002
"""Seconds between two looks at messages that are waited for."""


@dataclass(frozen=True)
class Ports:
    """What a robot is made of.

    Attributes:
        inlets: name of an observation -> what reads it.
        outlet: what makes commands.
        publish: sends one.
        now: seconds, by the clock that tells how old a message is.
        stale: after how many of them it is too old.
        wait: real seconds that the first messages of an episode may take.
        safe_action: what a stop sends; None: nothing.
        held: what reads the action that the robot holds; None: not known.
    """

    inlets: Mapping[str, Inlet]
    outlet: Outlet
    publish: Callable[[Any], None]
    now: Callable[[], float]
    stale: float
    wait: float
    safe_action: NDArray[Any] | None = None
    held: Joints | None = None


class TopicRobot:
    """A :class:`~lram_export.loop.robot.Robot`. Messages come by the executor's thread, all else is the loop's.

    Attributes:
        commands: how many were sent.
    """

    def __init__(
        self,
        ports: Ports,
        is_ending: Callable[[], bool],
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        """``begin`` is called where an episode begins, before its first step."""
        self.commands = 0
        self._ports, self._is_ending, self._begin = ports, is_ending, begin
        self._reward: float | None = None
        self._lock = Lock()
        self._events: deque[str] = deque(maxlen=1)
        self._is_stopped = False
        if ports.held is not None:
            self.holds = lambda: self._held(ports.held)

    # ---- the executor's thread

    def add_reward(self, reward: float) -> None:
        """A reward came."""
        with self._lock:
            self._reward = float(reward) + (self._reward or 0.0)

    def tell(self, event: str) -> None:
        """An episode has ended, or one is to begin."""
        self._events.append(event)

    # ---- the loop's thread

    def reset(self) -> Any:
        """Nobody moves the robot: an episode begins where it is, as soon as there is a reading of everything."""
        self.brought()
        self._events.clear()
        self._begin()
        until = time.monotonic() + self._ports.wait
        while True:
            try:
                return self.observe()
            except NoReadingError:
                if self._is_ending():
                    raise Ended from None
                if time.monotonic() >= until:
                    raise
            time.sleep(NAP)

    def observe(self) -> Any:
        """Every observation by name; raises NoReadingError, which the loop bridges."""
        now, stale = self._ports.now(), self._ports.stale
        return {name: inlet.read(now, stale) for name, inlet in self._ports.inlets.items()}

    def act(self, action: Any) -> None:
        """Send a command."""
        self._is_stopped = False
        self._ports.publish(self._ports.outlet.message(action))
        self.commands += 1

    def brought(self) -> float | None:
        """What came since the last step; None where nothing did."""
        with self._lock:
            reward, self._reward = self._reward, None
        return reward

    def event(self) -> str | None:
        """What was told of episodes. Where one begins, the loop does not reset the robot, but the policy alone."""
        event = self._events.popleft() if self._events else None
        if event == NEW_EPISODE:
            self._begin()
        return event

    def stop(self) -> None:
        """Send the safe action, where there is one, once."""
        if self._is_stopped or self._ports.safe_action is None or not self.commands:
            return
        self._ports.publish(self._ports.outlet.message(self._ports.safe_action))
        self._is_stopped = True

    def close(self) -> None:
        """Nobody sends commands from now on, and the last is the safe one."""
        self.stop()

    def _held(self, joints: Joints | None) -> NDArray[np.float64]:
        assert joints is not None
        return joints.read(self._ports.now(), self._ports.stale)
