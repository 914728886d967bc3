"""One episode in an environment, and what another policy would have done on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lram_export.errors import EnvironmentFailure, StepError, UsageError
from lram_export.policy import Policy
from lram_export.rollouts.environments.fitting import FittedEnvironment

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Trajectory:
    """One episode as it was played: T steps, with the reward each step gave."""

    observations: list[Array]
    actions: list[Array]
    logits: list[NDArray[np.float32]]
    rewards: list[float]
    success: bool | None
    policy_seconds: float
    environment_seconds: float


def rollout(
    environment: FittedEnvironment,
    policy: Policy,
    seed: int,
    aim: float,
    *,
    rewards: bool = True,
    on_step: Callable[[int], None] = lambda step: None,
) -> Trajectory:
    """Play one episode; ``on_step`` is called before each step with its number. Raises EnvironmentFailure."""
    observations: list[Array] = []
    actions: list[Array] = []
    logits: list[NDArray[np.float32]] = []
    gained: list[float] = []
    success: bool | None = None
    policy_seconds = environment_seconds = 0.0
    began = time.perf_counter()
    observation = environment.reset(seed)
    environment_seconds += time.perf_counter() - began
    try:
        policy.reset(target_return=aim)
    except ValueError as error:
        raise UsageError(str(error)) from None
    done = False
    while not done:
        began = time.perf_counter()
        action = _act(environment, policy, observation, gained[-1] if rewards and gained else None)
        acted = time.perf_counter()
        observations.append(observation)
        actions.append(action)
        logits.append(policy.action_logits[0])
        on_step(len(actions) - 1)
        stepping = time.perf_counter()
        observation, reward, done, reached = environment.step(action)
        environment_seconds += time.perf_counter() - stepping
        policy_seconds += acted - began
        gained.append(reward)
        if reached is not None:
            success = bool(success) or reached
    return Trajectory(observations, actions, logits, gained, success, policy_seconds, environment_seconds)


def _act(environment: FittedEnvironment, policy: Policy, observation: Array, reward: float | None) -> Array:
    try:
        return np.asarray(policy.act(observation, reward))  # of a discrete action without a dimension
    except ValueError as error:  # a NaN, say: the step API names the field
        raise EnvironmentFailure.of(environment.name, "what it showed", error) from error
    except StepError as error:
        raise StepError(f"{environment.name}: {error}") from None


def first_difference(expected: Trajectory, played: Trajectory) -> int | None:
    """The first step at which observation or action differ, or one of the two had already ended; else None."""
    for step, (observation, action) in enumerate(zip(played.observations, played.actions, strict=True)):
        if step >= len(expected.actions):
            return step
        same = np.array_equal(observation, expected.observations[step])
        if not same or not np.array_equal(action, expected.actions[step]):
            return step
    return None if len(expected.actions) == len(played.actions) else len(played.actions)


def answers_to(
    reference: Policy, own: Trajectory, played: Trajectory, parted_at: int | None, aim: float, *, rewards: bool
) -> list[tuple[Array, Array]]:
    """What the reference would have done at each step of ``played``, fed its history: actions and logits.

    As long as the trajectories are one, the reference's own episode is the answer.
    """
    if parted_at is None:
        return list(zip(own.actions, own.logits, strict=True))
    answers: list[tuple[Array, Array]] = []
    reference.reset(target_return=aim)
    for step, observation in enumerate(played.observations):
        reward = played.rewards[step - 1] if rewards and step else None
        answers.append((np.asarray(reference.act(observation, reward)), reference.action_logits[0]))
    return answers
