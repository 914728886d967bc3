"""DeepMind Control Suite in the layout of the published models: ``dmcontrol/cartpole-swingup``.

The training data puts every kind of observation at a fixed place of a vector of 204, whatever the task,
and zeros where a task has none; see the task table's domain ``dmcontrol``.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lram_export.rollouts.environments.dm_control import make_structured
from lram_export.rollouts.environments.dm_control import names as suite_names

_WIDTHS = {
    "orientations": 14, "velocity": 27, "position": 8, "touch": 5, "target_position": 2, "dist_to_target": 1,
    "joint_angles": 21, "upright": 1, "target": 3, "head_height": 1, "extremities": 12, "torso_vertical": 3,
    "com_velocity": 3, "arm_pos": 16, "arm_vel": 8, "hand_pos": 4, "object_pos": 4, "object_vel": 3,
    "target_pos": 4, "orientation": 2, "to_target": 2, "joints": 14, "body_velocities": 45, "height": 1,
}  # fmt: skip
"""Kind of observation -> places reserved for it, in order (from the original code's dmcontrol_utils.py)."""
_STARTS = dict(zip(_WIDTHS, np.cumsum([0, *_WIDTHS.values()]).tolist(), strict=False))
WIDTH = sum(_WIDTHS.values())
_BODIES = {
    "acrobot", "ball_in_cup", "cartpole", "cheetah", "finger", "fish", "hopper", "humanoid", "manipulator",
    "pendulum", "point_mass", "reacher", "swimmer", "walker",
}  # fmt: skip


class TrainingLayout(gymnasium.ObservationWrapper[NDArray[np.float64], Any, dict[str, NDArray[np.float64]]]):
    """Puts named observations at their places."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (WIDTH,), np.float64)

    def observation(self, observation: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Named observations -> (204,) float64."""
        placed = np.zeros(WIDTH)
        for name, value in observation.items():
            flat = np.ravel(value)
            placed[_STARTS[name] : _STARTS[name] + flat.size] = flat
        return placed


def names() -> list[str]:
    """The tasks of the suite whose observations all have a place."""
    return [name for name in suite_names() if _fits(name)]


def _fits(name: str) -> bool:
    # larger bodies (dog, quadruped, more poles, ...) have more or other observations than the layout has places
    body, _, task = name.partition("-")
    return body in _BODIES and "poles" not in task and "pure_state" not in task


def make(task: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """The task in the layout of the training data."""
    return TrainingLayout(make_structured(task, render_mode))
