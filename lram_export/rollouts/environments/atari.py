"""Atari games as in the training data: ``atari/pong``, (3, 64, 64) uint8, all 18 actions.

Frames are turned to grey, resized to 64x64 and repeated over the three channels; four frames a step with the
maximum of the last two, up to 30 idle steps at first, FIRE to start, an episode ends with a life, rewards
are clipped to their sign: all as the original training code's environments do.
"""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium
import numpy as np
from numpy.typing import NDArray

ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # else a banner on standard error for every game
gymnasium.register_envs(ale_py)
SCREEN = 64
_PREFIX, _SUFFIX = "ALE/", "-v5"
_FIRE = 1


class GreyToChannels(gymnasium.ObservationWrapper[NDArray[np.uint8], Any, NDArray[np.uint8]]):
    """(64, 64) -> (3, 64, 64), the same picture three times."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(0, 255, (3, SCREEN, SCREEN), np.uint8)

    def observation(self, observation: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """One grey picture, repeated."""
        return np.repeat(observation[None], 3, axis=0)


class FireReset(gymnasium.Wrapper[NDArray[np.uint8], Any, NDArray[np.uint8], Any]):
    """Presses FIRE once after a reset: some games do not begin without."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Reset, then one step of FIRE."""
        self.env.reset(seed=seed, options=options)
        observation, _, terminated, truncated, info = self.env.step(_FIRE)
        if terminated or truncated:
            observation, info = self.env.reset(options=options)
        return observation, info


def names() -> list[str]:
    """All games, as the task table writes them: ``bank-heist``."""
    return sorted(_ids())


def canonical(task: str) -> str:
    """``BankHeist`` and ``bank-heist`` are the same game."""
    return task if task in _ids() else _dashed(task)


def make(task: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """The game with the preprocessing of the training data."""
    game = gymnasium.make(
        _ids()[task], frameskip=1, repeat_action_probability=0.0, full_action_space=True, render_mode=render_mode
    )
    frames = gymnasium.wrappers.AtariPreprocessing(
        game, noop_max=30, frame_skip=4, screen_size=SCREEN, terminal_on_life_loss=True, grayscale_obs=True
    )
    return GreyToChannels(FireReset(gymnasium.wrappers.TransformReward(frames, lambda reward: np.sign(float(reward)))))


def _ids() -> dict[str, str]:
    """Game as the task table writes it -> id in the registry."""
    found = (i for i in gymnasium.registry if i.startswith(_PREFIX) and i.endswith(_SUFFIX))
    return {_dashed(i.removeprefix(_PREFIX).removesuffix(_SUFFIX)): i for i in found}


def _dashed(name: str) -> str:
    """``BankHeist`` -> ``bank-heist``."""
    return "".join(f"-{c.lower()}" if c.isupper() and at else c.lower() for at, c in enumerate(name))
