"""Composuite's tasks as in the training data: ``composuite/IIWA_Box_None_PickPlace``, arm, object, obstacle, objective.

Joint positions, 500 steps, shaped rewards and the task's identity among the observations, as in ml-jku/LRAM
(``src/envs/composuite_utils.py``).
"""

from __future__ import annotations

import itertools
import sys
from contextlib import redirect_stdout
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lram_export.rollouts.environments.robosuite import RobosuiteEnv, Rules

EPISODE_STEPS = 500

with redirect_stdout(sys.stderr):
    import composuite as package
    from composuite.env import main as parts


def names() -> list[str]:
    """All 256."""
    obstacles = [str(obstacle) for obstacle in parts.AVAILABLE_OBSTACLES if obstacle is not None]
    axes = (parts.AVAILABLE_ROBOTS, parts.AVAILABLE_OBJECTS, obstacles, parts.AVAILABLE_TASKS)
    return ["_".join(words) for words in itertools.product(*axes)]


def make(task: str, render_mode: str | None = None) -> gymnasium.Env[NDArray[np.float32], NDArray[np.float64]]:
    """The task."""
    arm, thing, obstacle, objective = task.split("_")
    keys: list[str] = []

    def simulator() -> Any:
        wrapped = package.make(
            arm,
            thing,
            obstacle,
            objective,
            use_task_id_obs=True,
            has_offscreen_renderer=render_mode is not None,
            env_horizon=EPISODE_STEPS,
        )
        keys.extend(wrapped.keys)
        return wrapped.env

    return RobosuiteEnv(simulator, lambda simulator: Rules(keys, EPISODE_STEPS), render_mode)
