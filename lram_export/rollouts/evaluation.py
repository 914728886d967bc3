"""Closed loop: does an exported policy still do its task, and does it do what the reference model does?

Every policy plays the same seeds. Whatever a target does is also shown to the reference, so that two
questions stay apart: how often an action differs when both were fed the same history, and where the two
ways through the environment part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.bundle import Bundle
from lram_export.episodes import intervals
from lram_export.episodes.intervals import Estimate, Mean
from lram_export.errors import EnvironmentFailure, StepError, UsageError
from lram_export.policy import Policy
from lram_export.progress import SILENT, Progress
from lram_export.rollouts.environments import table_target_return
from lram_export.rollouts.environments.fitting import FittedEnvironment
from lram_export.runtimes import Runtime, load_runtime
from lram_export.spec.tasks import TaskSpec
from lram_export.system.machine import threads_beside_others

if TYPE_CHECKING:
    from lram_export.checkpoints.checkpoint import Checkpoint

REFERENCE = "reference"
Array = NDArray[np.generic]


@dataclass(frozen=True)
class EvaluationOptions:
    """What to play.

    Attributes:
        environments: ``family/task`` each.
        targets: targets of the bundle to play with.
        episodes: per environment and policy.
        seed: of the first episode; the others follow.
        rewards: hand the environment's rewards to the policy, which lowers its return-to-go; without, it acts
            as a robot that has no reward signal.
        target_return: return to aim at, in the environment's units; None: the task table's for the
            environment, else the bundle's.
        threads: of each target's runtime.
    """

    environments: tuple[str, ...]
    targets: tuple[str, ...]
    episodes: int = 10
    seed: int = 0
    rewards: bool = True
    target_return: float | None = None
    threads: int = 1


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


@dataclass(frozen=True)
class EpisodeResult:
    """What remains of an episode.

    ``success`` is None where the environment does not tell. ``parted_at`` is the first step at which the
    trajectory differs from the reference's own, None if none does or there is no reference.
    """

    seed: int
    steps: int
    episode_return: float
    success: bool | None
    parted_at: int | None = None


@dataclass
class Agreement:
    """A target against the reference, fed the same history.

    ``largest_tie`` is the largest difference between the reference's logits of its own choice and of the
    target's, over all actions that differ: how close to a tie the reference was.
    """

    steps: int = 0
    steps_different: int = 0
    largest_tie: float = 0.0
    max_logit_error: float = 0.0

    def add(self, expected: tuple[Array, Array], actual: tuple[Array, Array]) -> None:
        """Compare one step: action (A,) and logits (A, K) or (K,) of each side."""
        (expected_action, expected_logits), (action, logits) = expected, actual
        self.steps += 1
        reference = expected_logits.reshape(expected_action.size, -1).astype(np.float64)
        chosen = logits.reshape(expected_action.size, -1).astype(np.float64)
        self.max_logit_error = max(self.max_logit_error, float(np.abs(chosen - reference).max()))
        different = np.flatnonzero(expected_action != action)
        if different.size:
            self.steps_different += 1
            best = reference[different].max(axis=1)
            other = reference[different, chosen[different].argmax(axis=1)]
            self.largest_tie = max(self.largest_tie, float((best - other).max()))


@dataclass
class PolicyResult:
    """One policy in one environment, over all episodes so far."""

    environment: str
    policy: str
    precision: str
    target_return: float
    episodes: list[EpisodeResult] = field(default_factory=list)
    agreement: Agreement | None = None
    policy_seconds: float = 0.0
    environment_seconds: float = 0.0

    @property
    def success(self) -> Estimate | None:
        """Rate of successful episodes; None where the environment does not tell."""
        known = [e.success for e in self.episodes if e.success is not None]
        return intervals.success_rate(sum(known), len(known)) if known else None

    @property
    def mean_return(self) -> Mean | None:
        """Mean return; None before the first episode."""
        return intervals.mean([e.episode_return for e in self.episodes]) if self.episodes else None

    @property
    def steps(self) -> int:
        """Environment steps played."""
        return sum(e.steps for e in self.episodes)

    @property
    def steps_per_second(self) -> float:
        """Environment steps per second, policy and environment together."""
        seconds = self.policy_seconds + self.environment_seconds
        return self.steps / seconds if seconds else 0.0

    @property
    def policy_share(self) -> float:
        """Part of the time the policy took, 0 to 1."""
        seconds = self.policy_seconds + self.environment_seconds
        return self.policy_seconds / seconds if seconds else 0.0

    def add(self, seed: int, trajectory: Trajectory, parted_at: int | None = None) -> None:
        """Add one episode."""
        episode_return = float(np.sum(trajectory.rewards))
        steps = len(trajectory.actions)
        self.episodes.append(EpisodeResult(seed, steps, episode_return, trajectory.success, parted_at))
        self.policy_seconds += trajectory.policy_seconds
        self.environment_seconds += trajectory.environment_seconds


@dataclass
class Evaluation:
    """All results, and the failure of an environment that ended the evaluation early, if one did."""

    options: EvaluationOptions
    results: list[PolicyResult] = field(default_factory=list)
    failure: str | None = None

    def result(self, environment: str, policy: str) -> PolicyResult:
        """The result of one policy in one environment; raises KeyError."""
        for result in self.results:
            if (result.environment, result.policy) == (environment, policy):
                return result
        raise KeyError(f"{environment}, {policy}")

    def same_outcome(self, result: PolicyResult) -> int | None:
        """Episodes whose success is the reference's on the same seed; None without reference or success."""
        try:
            reference = self.result(result.environment, REFERENCE)
        except KeyError:
            return None
        if result is reference or result.success is None:
            return None
        expected = {e.seed: e.success for e in reference.episodes}
        return sum(e.success == expected.get(e.seed) for e in result.episodes)


def reference_policy(bundle: Bundle, checkpoint: Checkpoint | None, *, other_checkpoint: bool = False) -> Policy:
    """The float32 reference model behind the step API, from a checkpoint or the bundle's `pytorch` artifact.

    It sets the number of torch's threads for the whole process, to what suits the model. With ``other_checkpoint``
    the checkpoint may be another than the bundle's, whatever its weights.

    Raises:
        UsageError: neither is there, the bundle is quantized (its `pytorch` artifact, too), the checkpoint is of
            another architecture or another file, or torch is missing.
        ParityError: the bundle's codes are not the checkpoint's.
    """
    manifest = bundle.manifest
    if checkpoint is None and manifest.quantization is not None:
        raise UsageError(
            f"{bundle.path}: its weights are {manifest.precision}, so nothing in it is the float32 reference; add "
            f"--checkpoint CHECKPOINT, or --no-reference to play without a comparison"
        )
    if checkpoint is None and "pytorch" not in bundle.targets:
        raise UsageError(
            f"{bundle.path}: holds no artifact for 'pytorch' to compare with; add --checkpoint CHECKPOINT, or "
            f"--no-reference to play without a comparison"
        )
    if checkpoint is None:
        runtime: Runtime = load_runtime("pytorch", bundle.load_artifact("pytorch"), 1)
    else:
        from lram_export.verification.oracle import build_oracle

        oracle = build_oracle(bundle, checkpoint, other_checkpoint=other_checkpoint)
        if not other_checkpoint:
            oracle.require_codes()
        runtime = oracle.float32.reference()
    import torch

    torch.set_num_threads(threads_beside_others(manifest.parameters))
    return Policy(runtime, manifest.task)


def evaluate(
    bundle: Bundle, options: EvaluationOptions, reference: Policy | None, progress: Progress = SILENT
) -> Evaluation:
    """Play every environment with the reference (if given) and with every target, on the same seeds.

    An environment that fails ends the evaluation; the results so far and the failure are returned.

    Raises:
        UsageError: an environment that does not exist, is not installed or does not fit the bundle; before
            anything is played.
    """
    manifest = bundle.manifest
    if manifest.batch_size != 1:
        raise UsageError(
            f"{bundle.path}: was exported for batches of {manifest.batch_size}; one episode needs one row: "
            f"export again with --batch 1"
        )
    evaluation = Evaluation(options)
    try:
        with ExitStack() as opened:
            environments = [
                opened.enter_context(FittedEnvironment.open(name, manifest.spec, manifest.task))
                for name in options.environments
            ]
            policies = {
                target: opened.enter_context(
                    Policy(load_runtime(target, bundle.load_artifact(target), options.threads), manifest.task)
                )
                for target in options.targets
            }
            for environment in environments:
                _play(environment, bundle, policies, reference, evaluation, progress)
    except EnvironmentFailure as failure:
        evaluation.failure = str(failure)
    return evaluation


def target_return(name: str, bundle: Bundle, options: EvaluationOptions) -> float:
    """The return to aim at in an environment, in its units."""
    if options.target_return is not None:
        return options.target_return
    return own_target_return(name, bundle.manifest.task)


def own_target_return(name: str, task: TaskSpec | None) -> float:
    """What the task table lists for an environment, else the policy's own; 0 for one that aims at no return."""
    listed = table_target_return(name)
    if listed is not None:
        return listed
    return 0.0 if task is None else task.target_return


def _play(
    environment: FittedEnvironment,
    bundle: Bundle,
    policies: dict[str, Policy],
    reference: Policy | None,
    evaluation: Evaluation,
    progress: Progress,
) -> None:
    options, name = evaluation.options, environment.name
    aim = target_return(name, bundle, options)
    own = None if reference is None else PolicyResult(name, REFERENCE, "fp32", aim)
    results = {t: PolicyResult(name, t, bundle.artifact(t).precision, aim) for t in policies}
    for result in results.values():
        result.agreement = None if reference is None else Agreement()
    evaluation.results += ([] if own is None else [own]) + list(results.values())
    with progress.stage(name, options.episodes * (len(policies) + (reference is not None))) as advance:
        for seed in range(options.seed, options.seed + options.episodes):
            expected = None
            if reference is not None and own is not None:
                expected = rollout(environment, reference, seed, aim, rewards=options.rewards)
                own.add(seed, expected)
                advance(1)
            for target, policy in policies.items():
                played = rollout(environment, policy, seed, aim, rewards=options.rewards)
                parted_at = None
                if reference is not None and expected is not None:
                    parted_at = first_difference(expected, played)
                    answers = answers_to(reference, expected, played, parted_at, aim, rewards=options.rewards)
                    _compare(results[target], answers, played)
                results[target].add(seed, played, parted_at)
                advance(1)


def _compare(result: PolicyResult, answers: Sequence[tuple[Array, Array]], played: Trajectory) -> None:
    assert result.agreement is not None
    for answer, action, logits in zip(answers, played.actions, played.logits, strict=True):
        result.agreement.add(answer, (action, logits))


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
