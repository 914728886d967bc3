"""A small environment that does what its arguments say; other processes can import it."""

from __future__ import annotations

import os
import signal
from typing import Any

import gymnasium
import numpy as np

LINE = "LramTestLine-v0"
OPTIONS = ["--observation-dim", "3", "--action-dim", "2", "--target-return", "10", "--reward-scale", "5"]
"""Of a bundle that fits it."""


class LineEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A point that the first action value moves; breaks, shows NaN, dies or ends as its id's arguments say."""

    observation_space = gymnasium.spaces.Box(-10, 10, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(
        self,
        breaks_at: int = -1,
        nan_at: int = -1,
        only_seed: int | None = None,
        dies: bool = False,
        breaks_in_close: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.breaks_at, self.nan_at, self.only_seed, self.dies = breaks_at, nan_at, only_seed, dies
        self.breaks_in_close = breaks_in_close

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.seed = seed
        self.position, self.count = self.np_random.normal(size=3).astype(np.float32), 0
        return self.position.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.count += 1
        now = self.count == self.breaks_at and self.only_seed in (None, self.seed)
        if now and self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        if now and self.np_random.random() >= 0:
            raise RuntimeError("the simulator\nhas exploded")
        self.position[0] += 0.1 * action[0]
        shown = self.position.copy()
        if self.count == self.nan_at:
            shown[1] = np.nan
        return shown, float(-abs(self.position[0])), False, self.count == 12, {"is_success": self.position[0] > 0}

    def close(self) -> None:
        if self.breaks_in_close:
            raise RuntimeError("does not end")
