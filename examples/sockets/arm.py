"""A simulated arm: cheap physics that goes on whether it is asked or not, as a real one's does."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

MOST_TURN, MOST_SPEED, STIFFNESS = 2.5, 3.0, 20.0
"""Of a joint: rad to either side, rad/s, and how fast it goes to its target, 1/s."""

PAUSE = 1.0
"""Seconds between two episodes."""


class Arm:
    """Joints that are told where to go, rad. It observes its positions, its velocities and a goal, and is rewarded for
    being near the goal.

    Attributes:
        motors: how many.
        done: its episode has ended. Another begins by itself a while later.
        episodes: begun so far.
    """

    def __init__(
        self, joints: int = 3, episode_steps: int = 0, seed: int = 0, now: Callable[[], float] = time.monotonic
    ) -> None:
        """``episode_steps``: an episode ends after so many actions; 0: never. ``now`` says seconds."""
        self.motors, self.done, self.episodes = joints, False, 0
        self._steps, self._taken, self._now = episode_steps, 0, now
        self._random = np.random.default_rng(seed)
        self._position, self._velocity, self._target, self._goal = (np.zeros(joints) for _ in range(4))
        self._at = self._done_at = now()
        self.reset()

    def reset(self) -> None:
        """Begin an episode: another goal. The arm stays where it is."""
        self.stop()
        self._goal = self._random.uniform(-1.5, 1.5, self.motors)
        self._taken, self.done = 0, False
        self.episodes += 1

    def observe(self) -> NDArray[np.float32]:
        """Positions, velocities and the goal: (3 * joints,)."""
        self._go_on()
        return np.concatenate([self._position, self._velocity, self._goal]).astype(np.float32)

    def act(self, action: NDArray[np.float32]) -> float:
        """Go there; the reward."""
        self._go_on()
        self._target = np.clip(action.astype(np.float64), -MOST_TURN, MOST_TURN)
        self._taken += 1
        if self._taken == self._steps:
            self.stop()
            self.done, self._done_at = True, self._now()
        return -float(np.abs(self._goal - self._position).mean())

    def holds(self) -> NDArray[np.float32]:
        """The targets that it goes to: (joints,)."""
        return self._target.astype(np.float32)

    def stop(self) -> None:
        """Stay where it is."""
        self._go_on()
        self._target = self._position.copy()

    def go_on(self) -> None:
        """Time goes on; between two episodes that begins the next."""
        self._go_on()
        if self.done and self._now() > self._done_at + PAUSE:
            self.reset()

    def _go_on(self) -> None:
        now = self._now()
        seconds, self._at = now - self._at, now
        if seconds > 0:
            way = (self._target - self._position) * -np.expm1(-STIFFNESS * seconds)
            way = np.clip(way, -MOST_SPEED * seconds, MOST_SPEED * seconds)
            self._position, self._velocity = self._position + way, way / seconds
