"""Plays a seed with the reference and with every target; in this process, or as the job of one of several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lram_export.bundle.bundle import Bundle
from lram_export.errors import EnvironmentFailure
from lram_export.policy import Policy
from lram_export.rollouts.environments import register, table_target_return
from lram_export.rollouts.environments.fitting import FittedEnvironment
from lram_export.rollouts.reference import ReferenceSource
from lram_export.rollouts.results import REFERENCE, Agreement, EpisodeResult, EvaluationOptions, Played
from lram_export.rollouts.trajectories import Array, Trajectory, answers_to, first_difference, rollout
from lram_export.rollouts.workers import Job
from lram_export.runtimes import load_runtime
from lram_export.spec.tasks import TaskSpec

Play = Callable[[str, int], Iterator[Played]]
"""(environment, seed) -> the episode of every policy, the reference's first; raises EnvironmentFailure."""
SeedTask = tuple[str, int]


@contextmanager
def players(bundle: Bundle, options: EvaluationOptions, reference: Policy | None) -> Iterator[Play]:
    """Open the environments and the targets' policies.

    Raises:
        UsageError: an environment that does not exist, is not installed or does not fit the bundle.
    """
    manifest = bundle.manifest
    with ExitStack() as opened:
        environments = {
            name: opened.enter_context(FittedEnvironment.open(name, manifest.spec.with_batch(1), manifest.task))
            for name in options.environments
        }
        policies = {
            target: opened.enter_context(
                Policy(load_runtime(target, bundle.load_artifact(target, 1), options.threads), manifest.task)
            )
            for target in options.targets
        }
        aims = {name: target_return(name, bundle, options) for name in environments}
        yield lambda name, seed: _play(environments[name], policies, reference, seed, aims[name], options.rewards)


@dataclass(frozen=True)
class SeedOutcome:
    """What a seed gave: the episodes, up to the failure of the environment, if there was one."""

    played: tuple[Played, ...]
    failure: EnvironmentFailure | None = None

    def again(self) -> Iterator[Played]:
        """The episodes and the failure, as they came."""
        yield from self.played
        if self.failure is not None:
            raise self.failure


@dataclass(frozen=True)
class EvaluationJob(Job[SeedTask, SeedOutcome]):
    """:func:`players` for another process. ``registered`` are environments that only this process knows."""

    bundle: Path
    options: EvaluationOptions
    reference: ReferenceSource | None
    registered: Mapping[str, bytes]

    @contextmanager
    def ready(self) -> Iterator[Callable[[SeedTask], SeedOutcome]]:
        """See :class:`~lram_export.rollouts.workers.Job`."""
        register(self.registered)
        bundle = Bundle.open(self.bundle)
        with ExitStack() as opened:
            reference = None
            if self.reference is not None:
                reference = opened.enter_context(self.reference.load(bundle, self.options.parallel))
            play = opened.enter_context(players(bundle, self.options, reference))
            yield lambda task: _outcome(play(*task))


def _outcome(episodes: Iterator[Played]) -> SeedOutcome:
    played: list[Played] = []
    try:
        played.extend(episodes)
    except EnvironmentFailure as failure:
        return SeedOutcome(tuple(played), failure)
    return SeedOutcome(tuple(played))


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
    policies: Mapping[str, Policy],
    reference: Policy | None,
    seed: int,
    aim: float,
    rewards: bool,
) -> Iterator[Played]:
    expected = None
    if reference is not None:
        expected = rollout(environment, reference, seed, aim, rewards=rewards)
        yield _played(REFERENCE, seed, expected)
    for target, policy in policies.items():
        trajectory = rollout(environment, policy, seed, aim, rewards=rewards)
        parted_at = agreement = None
        if reference is not None and expected is not None:
            parted_at = first_difference(expected, trajectory)
            answers = answers_to(reference, expected, trajectory, parted_at, aim, rewards=rewards)
            agreement = _agreement(answers, trajectory)
        yield _played(target, seed, trajectory, parted_at, agreement)


def _played(
    policy: str,
    seed: int,
    trajectory: Trajectory,
    parted_at: int | None = None,
    agreement: Agreement | None = None,
) -> Played:
    gained, steps = float(np.sum(trajectory.rewards)), len(trajectory.actions)
    episode = EpisodeResult(seed, steps, gained, trajectory.success, parted_at)
    return Played(policy, episode, agreement, trajectory.policy_seconds, trajectory.environment_seconds)


def _agreement(answers: Sequence[tuple[Array, Array]], played: Trajectory) -> Agreement:
    agreement = Agreement()
    for answer, action, logits in zip(answers, played.actions, played.logits, strict=True):
        agreement.add(answer, (action, logits))
    return agreement
