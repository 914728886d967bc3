"""Meta-World as an environment of LeRobot that gives all 39 numbers: ``--env.type=metaworld_state``.

The simulator, what a seed means and the 200 steps of an episode are those of ``lram-export evaluate``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_STATE

from lram_export.rollouts.environments import open_environment

OBSERVED = "agent_pos"
"""What LeRobot makes ``observation.state`` of."""
NUMBERS, JOINTS, STEPS = 39, 4, 200


class StateEnv(gym.Env):
    """One task; an episode goes on when the task is done, to its end."""

    metadata = {"render_modes": [], "render_fps": 80}  # noqa: RUF012  as gymnasium declares it

    def __init__(self, task: str) -> None:
        self._env = open_environment(f"metaworld/{task}")
        self.observation_space = gym.spaces.Dict({OBSERVED: gym.spaces.Box(-np.inf, np.inf, (NUMBERS,), np.float64)})
        self.action_space = self._env.action_space
        self.task = self.task_description = task
        self._max_episode_steps = STEPS

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        observation, _ = self._env.reset(seed=seed)
        return {OBSERVED: observation}, {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self._env.step(action)
        return {OBSERVED: observation}, float(reward), terminated, truncated, {"is_success": bool(info["success"])}

    def close(self) -> None:
        self._env.close()


@EnvConfig.register_subclass("metaworld_state")
@dataclass
class MetaworldStateEnv(EnvConfig):
    """``--env.task=reach-v3``."""

    task: str = "reach-v3"
    fps: int = 80
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            ACTION: PolicyFeature(FeatureType.ACTION, (JOINTS,)),
            OBSERVED: PolicyFeature(FeatureType.STATE, (NUMBERS,)),
        }
    )
    features_map: dict[str, str] = field(default_factory=lambda: {ACTION: ACTION, OBSERVED: OBS_STATE})

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        make: Callable[[], gym.Env] = lambda: StateEnv(self.task)  # noqa: E731
        vector = gym.vector.AsyncVectorEnv if use_async_envs and n_envs > 1 else gym.vector.SyncVectorEnv
        return {self.type: {0: vector([make] * n_envs)}}
