"""Policies trained for a moment by the trainers themselves, and what those do with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

OBSERVATIONS, ACTIONS, ROWS = 9, 3, 3
"""Of the environments of this module; rows of a step."""

Act = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(observations (rows, width), is_first (rows,)) -> actions, as the trainer infers them."""


@dataclass(frozen=True)
class Trained:
    """A file, how it acts where it was trained, and whether its actions are whole numbers."""

    path: Path
    act: Act
    discrete: bool = False


class Reach(gymnasium.Env[Any, Any]):
    """The action should be what three numbers of the observation are; limits that differ."""

    observation_space = spaces.Box(-np.inf, np.inf, (OBSERVATIONS,), np.float32)
    action_space = spaces.Box(np.array([-2, -0.5, -1], np.float32), np.array([1, 0.25, 3], np.float32))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._see(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        error = float(np.square(np.asarray(action) - self.seen[:ACTIONS]).sum())
        self.steps += 1
        return self._see(), -error, False, self.steps >= 20, {}

    def _see(self) -> Any:
        self.seen = (3 * self.np_random.standard_normal(OBSERVATIONS) + 1).astype(np.float32)
        return self.seen


class Choose(Reach):
    """The same with one of five actions."""

    action_space = spaces.Discrete(5)  # type: ignore[assignment]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        right = int(self.seen[0] > 1)
        self.steps += 1
        return self._see(), float(action == right), False, self.steps >= 20, {}


class Look(gymnasium.Env[Any, Any]):
    """A small image, and one of four actions."""

    observation_space = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._see(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._see(), float(action), False, self.steps >= 20, {}

    def _see(self) -> Any:
        return self.np_random.integers(0, 256, (3, 36, 36), np.uint8)


def stable_baselines(name: str, folder: Path) -> Trained:
    """A policy of stable-baselines3 or sb3-contrib."""
    import sb3_contrib
    import stable_baselines3 as sb3

    small: dict[str, Any] = {"policy_kwargs": {"net_arch": [24, 16]}, "seed": 0, "device": "cpu"}
    on_policy = {**small, "n_steps": 32, "batch_size": 16, "n_epochs": 2}
    off_policy = {**small, "learning_starts": 40, "buffer_size": 500, "batch_size": 16}
    made: dict[str, Callable[[], Any]] = {
        "ppo": lambda: sb3.PPO("MlpPolicy", Reach(), **on_policy),
        "a2c": lambda: sb3.A2C("MlpPolicy", Choose(), **{**small, "policy_kwargs": {"activation_fn": torch.nn.ELU}}),
        "squashed": lambda: sb3.PPO(
            "MlpPolicy",
            Reach(),
            use_sde=True,
            **{**on_policy, "policy_kwargs": {"squash_output": True, "net_arch": []}},
        ),
        "sac": lambda: sb3.SAC("MlpPolicy", Reach(), **off_policy),
        "tqc": lambda: sb3_contrib.TQC("MlpPolicy", Reach(), **off_policy),
        "td3": lambda: sb3.TD3("MlpPolicy", Reach(), **off_policy),
        "dqn": lambda: sb3.DQN("MlpPolicy", Choose(), **off_policy),
        "pixels": lambda: sb3.PPO("CnnPolicy", Look(), **{**on_policy, "policy_kwargs": {"net_arch": [8]}}),
        "recurrent": lambda: sb3_contrib.RecurrentPPO(
            "MlpLstmPolicy",
            Reach(),
            **{**on_policy, "policy_kwargs": {"net_arch": [16], "lstm_hidden_size": 20, "n_lstm_layers": 2}},
        ),
        "recurrent discrete": lambda: sb3_contrib.RecurrentPPO(
            "MlpLstmPolicy", Choose(), **{**on_policy, "policy_kwargs": {"net_arch": [], "lstm_hidden_size": 20}}
        ),
    }
    model = made[name]()
    model.learn(96)
    path = folder / "model.zip"
    model.save(path)
    return Trained(path, predictor(model), isinstance(model.action_space, spaces.Discrete))


def predictor(model: Any, normalize: Callable[[np.ndarray], np.ndarray] = lambda observation: observation) -> Act:
    """How stable-baselines3 itself acts."""
    state = None

    def act(observation: np.ndarray, is_first: np.ndarray) -> np.ndarray:
        nonlocal state
        found, state = model.predict(
            normalize(observation), state=state, episode_start=is_first.astype(bool), deterministic=True
        )
        return np.asarray(found)

    return act


def normalized(folder: Path) -> tuple[Trained, Any]:
    """A policy of observations that ``VecNormalize`` normalizes, its statistics beside it, and the wrapper."""
    import stable_baselines3 as sb3
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    env = VecNormalize(DummyVecEnv([Reach]), clip_obs=1.5)
    model = sb3.PPO("MlpPolicy", env, n_steps=32, batch_size=16, n_epochs=2, seed=0, device="cpu")
    model.learn(96)
    model.save(folder / "model.zip")
    env.save(str(folder / "vecnormalize.pkl"))
    env.training = False
    return Trained(folder / "model.zip", predictor(model, env.normalize_obs)), env


def rsl(name: str, folder: Path) -> Trained:
    """A policy of rsl_rl with its `params/agent.yaml` as Isaac Lab writes it."""
    import yaml
    from rsl_rl.runners import OnPolicyRunner
    from tensordict import TensorDict

    model: dict[str, Any] = {"hidden_dims": [24, 16], "activation": "elu", "obs_normalization": True}
    recurrent = {"class_name": "RNNModel", "rnn_hidden_dim": 20, "rnn_num_layers": 2}
    kinds: dict[str, dict[str, Any]] = {
        "mlp": {"class_name": "MLPModel"},
        "lstm": {**recurrent, "rnn_type": "lstm"},
        "gru": {**recurrent, "rnn_type": "gru", "obs_normalization": False, "activation": "crelu"},
        "heteroscedastic": {"class_name": "MLPModel", "activation": "swish"},
    }
    spread = "Heteroscedastic" if name == "heteroscedastic" else ""
    distribution = {"class_name": f"{spread}GaussianDistribution", "init_std": 1.0}
    actor = {**model, **kinds[name], "distribution_cfg": distribution}
    settings = {
        "num_steps_per_env": 8,
        "save_interval": 100,
        "obs_groups": {"actor": ["policy", "command"], "critic": ["policy"]},
        "actor": actor,
        "critic": {"class_name": "MLPModel", "hidden_dims": [8], "activation": "elu"},
        "algorithm": {"class_name": "PPO", "num_learning_epochs": 2, "num_mini_batches": 1, "rnd_cfg": None},
        "logger": "tensorboard",
        "clip_actions": None,
    }
    written = {**settings, "seen": (1, 2)}  # as Isaac Lab's, with a tuple of Python's
    (folder / "params").mkdir()
    (folder / "params" / "agent.yaml").write_text(yaml.dump(written))
    torch.manual_seed(0)
    runner = OnPolicyRunner(RslReach(), settings, log_dir=None, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *_, **__: None)
        runner.learn(3)
    path = folder / "model_2.pt"
    torch.save({**runner.alg.save(), "iter": 2, "infos": None}, path)
    policy: Any = runner.get_inference_policy(device="cpu")
    policy.reset()

    def act(observation: np.ndarray, is_first: np.ndarray) -> np.ndarray:
        groups = {"policy": torch.from_numpy(observation[:, :5]), "command": torch.from_numpy(observation[:, 5:])}
        with torch.inference_mode():
            policy.reset(torch.from_numpy(is_first))
            return policy(TensorDict(groups, batch_size=[len(observation)])).numpy().copy()

    return Trained(path, act)


class RslReach:
    """Like :class:`Reach`, as rsl_rl wants an environment, its observation in two groups."""

    num_envs, num_actions, max_episode_length, device, cfg = 4, ACTIONS, 20, "cpu", {}

    def __init__(self) -> None:
        self.episode_length_buf = torch.zeros(self.num_envs, dtype=torch.long)
        self._see()

    def get_observations(self) -> Any:
        from tensordict import TensorDict

        groups = {"policy": self.seen[:, :5], "command": self.seen[:, 5:]}
        return TensorDict(groups, batch_size=[self.num_envs])

    def step(self, actions: torch.Tensor) -> tuple[Any, ...]:
        reward = -(actions - self.seen[:, :ACTIONS]).square().sum(-1)
        self.episode_length_buf += 1
        done = self.episode_length_buf >= self.max_episode_length
        self.episode_length_buf[done] = 0
        self._see()
        return self.get_observations(), reward, done.long(), {"time_outs": done}

    def _see(self) -> None:
        self.seen = 3 * torch.randn(self.num_envs, OBSERVATIONS) + 1
