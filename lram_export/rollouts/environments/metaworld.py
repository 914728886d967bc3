"""Meta-World tasks (MuJoCo on the CPU): ``metaworld/reach-v3``, the goal in the observation.

The task table's ``-v2`` names are this package's ``-v3`` environments; both are accepted. An episode has
200 steps, as in the training data of the published models, although the package allows 500.
"""

from __future__ import annotations

from typing import Any, cast

import gymnasium
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
from numpy.typing import NDArray

EPISODE_STEPS = 200
"""The horizon of the training data (Continual World's ``META_WORLD_TIME_HORIZON``)."""
CAMERA = "corner2"
_SUFFIX = "-goal-observable"
_MAX_SEED = 2**32


class MetaWorldEnv(gymnasium.Env[NDArray[np.float64], NDArray[np.float32]]):
    """One Meta-World task whose layout (object and goal positions) is a function of the reset's seed alone.

    The simulator is built anew for every seed: nothing of an episode can reach the next one.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012  as gymnasium declares it

    def __init__(self, task: str, render_mode: str | None = None) -> None:
        self._class = cast(Any, ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[task + _SUFFIX])
        self.render_mode = render_mode
        self._simulator = self._class(seed=0, render_mode=render_mode)
        self.action_space = self._simulator.action_space
        self.observation_space = self._simulator.observation_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """A new layout, drawn with ``seed``; without one, from the environment's own random numbers."""
        super().reset(seed=seed)
        layout = int(self.np_random.integers(_MAX_SEED)) if seed is None else seed
        self._simulator.close()
        self._simulator = self._class(seed=layout, render_mode=self.render_mode)
        observation, info = self._simulator.reset()
        return observation, info

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """One control step (0.0125 s of simulated time)."""
        observation, reward, terminated, truncated, info = self._simulator.step(action)
        return observation, float(reward), terminated, truncated, info

    def render(self) -> NDArray[np.uint8]:
        """(480, 480, 3) picture, from the corner that shows gripper, object and goal."""
        self._simulator.mujoco_renderer.camera_id = self._simulator.model.camera(CAMERA).id
        frame: NDArray[np.uint8] = self._simulator.render()
        return frame[::-1, ::-1]  # this camera is mounted upside down

    def close(self) -> None:
        """Free the simulator."""
        self._simulator.close()


def names() -> list[str]:
    """All tasks of the installed package."""
    return sorted(key.removesuffix(_SUFFIX) for key in ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE)


def canonical(task: str) -> str:
    """The package's name of a task, also for the task table's."""
    return task.removesuffix("-v2") + "-v3" if task.endswith("-v2") else task


def make(task: str, render_mode: str | None) -> gymnasium.Env[NDArray[np.float64], NDArray[np.float32]]:
    """The environment of a task, limited to the training data's horizon."""
    return gymnasium.wrappers.TimeLimit(MetaWorldEnv(task, render_mode), EPISODE_STEPS)
