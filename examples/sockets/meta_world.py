"""Meta-World behind the same face as the arm: a simulation that stands still between two actions."""

from __future__ import annotations

from typing import Any

import gymnasium
import metaworld  # registers its environments  # noqa: F401
import numpy as np
from numpy.typing import NDArray


class MetaWorld:
    """One task, an episode after the other; each ends where the goal is reached, or after 500 steps.

    Attributes:
        motors: how many.
        done: never: the next episode begins at once.
        episodes: begun so far.
        reached: of them, how many goals.
    """

    def __init__(self, task: str = "reach-v3", seed: int = 0) -> None:
        self._environment: Any = gymnasium.make("Meta-World/goal_observable", env_name=task, seed=seed)
        self.motors, self.done, self.episodes, self.reached = 4, False, 0, 0
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self._observation, _ = self._environment.reset()
        self._held = np.zeros(self.motors, np.float32)
        self.episodes += 1

    def observe(self) -> NDArray[np.float32]:
        """What the environment observes, (39,)."""
        return np.asarray(self._observation, np.float32)

    def act(self, action: NDArray[np.float32]) -> float:
        """A step of the environment; its reward."""
        self._observation, reward, terminated, truncated, info = self._environment.step(action)
        self._held = action
        self.reached += bool(info["success"])
        if info["success"] or terminated or truncated:
            self.reset()
        return float(reward)

    def holds(self) -> NDArray[np.float32]:
        """The action of the last step: (4,)."""
        return self._held

    def stop(self) -> None:
        """Nothing moves between two steps."""

    def go_on(self) -> None:
        """No time passes between two steps."""
