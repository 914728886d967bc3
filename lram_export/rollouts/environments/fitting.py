"""Makes a Gymnasium environment fit a policy: checks both sides, pads observations, turns actions around."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lram_export.errors import EnvironmentFailure, UsageError
from lram_export.rollouts.environments import PATIENCE, domain_task, open_environment
from lram_export.spec.tasks import TaskSpec, task_table
from lram_export.spec.tensors import StepSpec


class Transition(NamedTuple):
    """What an action led to. ``success`` is None where the environment does not tell."""

    observation: NDArray[np.generic]
    reward: float
    done: bool
    success: bool | None


class FittedEnvironment:
    """An environment in the terms of a bundle: its observations in, its actions out.

    Observations shorter than the policy's are padded with zeros, as in training. Actions of a policy lie in
    [-1, 1) and are scaled to the environment's bounds where these differ. A task of the table that takes fewer values
    than the policy gives gets the first ones, as in training. A context manager: leaving it closes it.
    """

    def __init__(self, name: str, environment: gymnasium.Env[Any, Any], spec: StepSpec, task: TaskSpec) -> None:
        self.name = name
        self._shape = spec.inputs[0].shape[1:]
        self._dtype = np.dtype(spec.inputs[0].dtype)
        check_observations(name, environment.observation_space, spec, task)
        check_actions(name, environment.action_space, spec, task)
        space = environment.action_space
        if isinstance(space, gymnasium.spaces.Box) and not (np.all(space.low == -1) and np.all(space.high == 1)):
            environment = gymnasium.wrappers.RescaleAction(environment, np.float32(-1), np.float32(1))
        self._discrete = task.action == "discrete"
        self._taken = 0 if self._discrete else int(np.prod(space.shape or ()))
        self._environment = environment

    @classmethod
    def open(
        cls,
        name: str,
        spec: StepSpec,
        task: TaskSpec | None,
        *,
        render: bool = False,
        command: str | None = None,
        patience: float = PATIENCE,
    ) -> FittedEnvironment:
        """Make the environment ``family/task`` fit a policy, in this process or in that of a command.

        Raises:
            UsageError: it does not exist or fit.
            EnvironmentFailure: it cannot be made.
        """
        if task is None:
            raise UsageError(
                f"{name}: which environments a module of one's own fits is not known; step it in your own loop, with "
                f"lram_export.load_policy"
            )
        if (reason := unlike(name, task)) is not None:
            raise UsageError(f"--env {name}: {reason}")  # before it is made, which may take long
        environment = open_environment(name, render=render, command=command, patience=patience)
        try:
            return cls(name, environment, spec, task)
        except BaseException:
            environment.close()
            raise

    def reset(self, seed: int) -> NDArray[np.generic]:
        """Start the episode that belongs to ``seed``; raises EnvironmentFailure."""
        try:
            observation, _ = self._environment.reset(seed=seed)
        except EnvironmentFailure:
            raise
        except Exception as error:  # an environment is foreign code: whatever it raises is its failure
            raise EnvironmentFailure.of(self.name, "reset", error) from error
        return self._fitted(observation)

    def step(self, action: NDArray[np.generic]) -> Transition:
        """Take one action, (action_dim,) float32 or one int64 without a dimension; raises EnvironmentFailure."""
        try:
            taken = int(action) if self._discrete else action[: self._taken]
            observation, reward, terminated, truncated, info = self._environment.step(taken)
        except EnvironmentFailure:
            raise
        except Exception as error:
            raise EnvironmentFailure.of(self.name, "step", error) from error
        success = info.get("success", info.get("is_success"))
        done = bool(terminated or truncated)
        return Transition(self._fitted(observation), float(reward), done, None if success is None else bool(success))

    def render(self) -> NDArray[np.uint8]:
        """(H, W, 3) picture; raises EnvironmentFailure."""
        try:
            frame = self._environment.render()
        except EnvironmentFailure:
            raise
        except Exception as error:
            raise EnvironmentFailure.of(self.name, "render", error) from error
        return np.asarray(frame, np.uint8)

    def close(self) -> None:
        """Free the environment; raises EnvironmentFailure."""
        try:
            self._environment.close()
        except EnvironmentFailure:
            raise
        except Exception as error:
            raise EnvironmentFailure.of(self.name, "close", error) from error

    def __enter__(self) -> FittedEnvironment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fitted(self, observation: NDArray[np.generic]) -> NDArray[np.generic]:
        if len(self._shape) == 3:
            return observation
        row = np.zeros(self._shape, self._dtype)
        row[: observation.size] = observation.ravel()
        return row


def unlike(name: str, task: TaskSpec) -> str | None:
    """Why a task of the table is nothing for a policy, as far as that is known without the environment."""
    row = task_table().get(domain_task(name)[0])
    if row is None or (row["observation"], row["action"]) == (task.observation, task.action):
        return None
    return (
        f"it has {row['observation']} observations and {row['action']} actions; the bundle's policy for {task.name} "
        f"has {task.observation} observations and {task.action} actions"
    )


def check_observations(name: str, space: gymnasium.Space[Any], spec: StepSpec, task: TaskSpec) -> None:
    """Raise UsageError, naming both sides, unless the policy can take what the environment shows."""
    expected = spec.inputs[0].shape[1:]
    policy = f"the bundle's policy for {task.name}"
    if not isinstance(space, gymnasium.spaces.Box):
        raise UsageError(f"--env {name}: its observations are {space}; {policy} takes a Box of shape {expected}")
    if len(expected) == 3:
        if space.shape != expected or space.dtype != np.uint8:
            raise UsageError(
                f"--env {name}: its observations are {space.dtype} of shape {space.shape}; {policy} takes "
                f"uint8 images of shape {expected}"
            )
    elif int(np.prod(space.shape)) > expected[0]:
        raise UsageError(
            f"--env {name}: its observations have {int(np.prod(space.shape))} values; {policy} takes at most "
            f"{expected[0]}. Export with a larger --observation-dim if the model allows it"
        )


def check_actions(name: str, space: gymnasium.Space[Any], spec: StepSpec, task: TaskSpec) -> None:
    """Raise UsageError, naming both sides, unless the environment can take what the policy does."""
    if task.action == "discrete":
        choices = spec.outputs[1].shape[-1]
        if not isinstance(space, gymnasium.spaces.Discrete) or space.n != choices or space.start != 0:
            raise UsageError(
                f"--env {name}: its actions are {space}; the bundle's policy for {task.name} chooses one of {choices}"
            )
        return
    finite = isinstance(space, gymnasium.spaces.Box) and bool(np.isfinite([space.low, space.high]).all())
    most = task.action_dim
    # a policy of many tasks gives as many values as the task with most: what it was trained on takes the first ones
    fewest = 1 if domain_task(name)[0] else most
    if not finite or len(space.shape or ()) != 1 or not fewest <= space.shape[0] <= most:  # type: ignore[index]
        raise UsageError(
            f"--env {name}: its actions are {space}; the bundle's policy for {task.name} gives {task.action_dim} "
            f"values within [-1, 1)"
        )
