"""Procgen's games as in the training data: ``procgen/coinrun``, (3, 64, 64) uint8, where its package installs."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lram_export.rollouts.environments.serve_environment import Procgen

GAMES = (
    "bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot", "heist", "jumper",
    "leaper", "maze", "miner", "ninja", "plunder", "starpilot",
)  # fmt: skip


class ProcgenEnv(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """:class:`Procgen` for Gymnasium."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  as gymnasium declares it

    def __init__(self, task: str, render_mode: str | None) -> None:
        self._game = Procgen(task)
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, self._game.observation_space.shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(self._game.action_space.n)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """The level of a seed; without one, a random one."""
        super().reset(seed=seed)
        return self._game.reset(int(self.np_random.integers(2**31)) if seed is None else seed)

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Take one of 18 choices, of which the last three do nothing."""
        return self._game.step(int(action))

    def render(self) -> NDArray[np.uint8]:
        """(64, 64, 3)."""
        return self._game.render()

    def close(self) -> None:
        """Free the game."""
        self._game.close()


def names() -> list[str]:
    """All games."""
    return sorted(GAMES)


def make(task: str, render_mode: str | None) -> gymnasium.Env[NDArray[np.uint8], np.int64]:
    """The game."""
    return ProcgenEnv(task, render_mode)
