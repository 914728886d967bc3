"""Plays a seed with the reference and with every target; in this process, or as the job of one of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lram_export.bundle.bundle import Bundle
from lram_export.bundle.manifest import MANIFEST_FILE
from lram_export.errors import EnvironmentFailure, LramError
from lram_export.policy import Policy
from lram_export.rollouts.environments import check_packages, package_versions, register, table_target_return
from lram_export.rollouts.environments.fitting import FittedEnvironment
from lram_export.rollouts.reference import ReferenceSource
from lram_export.rollouts.results import REFERENCE, Agreement, EpisodeResult, EvaluationOptions, Played
from lram_export.rollouts.trajectories import Array, Trajectory, answers_to, first_difference, rollout
from lram_export.rollouts.workers import Job
from lram_export.runtimes import RUNTIMES, load_runtime, unavailable
from lram_export.spec.tasks import TaskSpec

Play = Callable[[str, int], Iterator[Played]]
"""(environment, seed) -> the episode of every policy, the reference's first; raises EnvironmentFailure."""
SeedTask = tuple[str, int]


class Stage:
    """The environment that is being played: one at a time, since there may be hundreds.

    A context manager: leaving it closes what is open. Whoever does not close is told to ``failed``: its episodes are
    whole.
    """

    def __init__(
        self, bundle: Bundle, options: EvaluationOptions, failed: Callable[[EnvironmentFailure], None]
    ) -> None:
        self._spec, self._task = bundle.manifest.spec.with_batch(1), bundle.manifest.task
        self._options = options
        self._failed = failed
        self._open: FittedEnvironment | None = None

    def environment(self, name: str) -> FittedEnvironment:
        """The one of this name; another is closed first.

        Raises:
            UsageError: it does not exist, is not installed or does not fit the bundle.
            EnvironmentFailure: it cannot be made.
        """
        if self._open is None or self._open.name != name:
            self.close()
            command, patience = self._options.command(name), self._options.patience
            self._open = FittedEnvironment.open(name, self._spec, self._task, command=command, patience=patience)
        return self._open

    def close(self) -> None:
        """Close what is open."""
        current, self._open = self._open, None
        if current is not None:
            try:
                current.close()
            except EnvironmentFailure as failure:
                self._failed(failure)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def players(
    bundle: Bundle,
    options: EvaluationOptions,
    reference: Policy | None,
    failed: Callable[[EnvironmentFailure], None],
) -> Iterator[Play]:
    """Open the targets' policies, and each environment when its turn comes; ``failed`` is told what does not close."""
    task = bundle.manifest.task
    with ExitStack() as opened:
        policies = {
            target: opened.enter_context(
                Policy(load_runtime(target, bundle.load_artifact(target, 1), options.threads), task)
            )
            for target in options.targets
        }
        stage = opened.enter_context(Stage(bundle, options, failed))

        def play(name: str, seed: int) -> Iterator[Played]:
            environment, aim = stage.environment(name), target_return(name, bundle, options)
            scale = options.of(name).reward_scale
            acting = {target: scaled(policy, scale) for target, policy in policies.items()}
            beside = None if reference is None else scaled(reference, scale)
            return _play(environment, acting, beside, seed, aim, options.rewards)

        yield play


def scaled(policy: Policy, scale: float | None) -> Policy:
    """The same policy, which divides return-to-go and rewards by another scale; None: by its own.

    They share the runtime, which is the first one's to close.
    """
    if scale is None or policy.task is None or policy.task.reward_scale == scale:
        return policy
    return Policy(policy.runtime, replace(policy.task, reward_scale=scale))


@dataclass(frozen=True)
class SeedOutcome:
    """What a seed gave: the episodes, up to the failure of the environment, if there was one.

    ``closing`` are failures of environments that were closed meanwhile.
    """

    played: tuple[Played, ...]
    failure: EnvironmentFailure | None = None
    closing: tuple[EnvironmentFailure, ...] = ()

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
        closing: list[EnvironmentFailure] = []
        broken: dict[str, int] = {}
        with ExitStack() as opened:
            reference = None
            if self.reference is not None:
                reference = opened.enter_context(self.reference.load(bundle, self.options.parallel))
            play = opened.enter_context(players(bundle, self.options, reference, closing.append))

            def outcome(task: SeedTask) -> SeedOutcome:
                if broken.get(task[0], task[1]) < task[1]:  # in an earlier seed: nobody will ask for this one
                    return SeedOutcome(())
                closing.clear()
                played: list[Played] = []
                failure = None
                try:
                    played.extend(play(*task))
                except EnvironmentFailure as error:
                    failure = error
                    broken[task[0]] = min(task[1], broken.get(task[0], task[1]))
                return SeedOutcome(tuple(played), failure, tuple(closing))

            yield outcome
            closing.clear()
        if closing:
            raise closing[0]

    def group(self, task: SeedTask) -> str:
        """The environment, which takes time to open."""
        return task[0]

    def reads(self) -> dict[Path, tuple[str, ...]]:
        """What of the bundle is run, and the checkpoint."""
        bundle = Bundle.open(self.bundle)
        targets = set(self.options.targets)
        if self.reference is not None and "pytorch" in bundle.targets:
            targets.add("pytorch")
        names = [name for target in bundle.targets if target in targets for name in bundle.read_by(target)]
        if bundle.manifest.quantization is not None:
            names.append(bundle.manifest.quantization.file.path)
        return {self.bundle: tuple(dict.fromkeys(names)), **(self.reference.reads() if self.reference else {})}

    def moved(self, places: Mapping[Path, Path]) -> EvaluationJob:
        """See :class:`~lram_export.rollouts.workers.Job`."""
        reference = None if self.reference is None else self.reference.moved(places)
        return dataclasses.replace(self, bundle=places[self.bundle], reference=reference)

    def versions(self) -> dict[str, str]:
        """Of the targets' packages, the environments' and numpy."""
        targets = [*self.options.targets, *(["pytorch"] if self.reference is not None else [])]
        found = {"numpy": np.__version__}
        for target in targets:
            found |= RUNTIMES[target].versions()
        return {**found, **package_versions(self.options.environments)}

    def unfit(self) -> str | None:
        """A target that does not run here, or an environment whose packages are missing."""
        bundle = Bundle.open(self.bundle)
        for target in self.options.targets:
            reason = unavailable(target) or unavailable(target, bundle.load_artifact(target, 1))
            if reason is not None:
                return f"target '{target}': {reason}"
        for name in self.options.environments:
            if self.options.command(name) is None:
                check_packages(name)
        return None

    def lost(self, task: SeedTask, error: LramError) -> SeedOutcome:
        """No episode, and why."""
        name, seed = task
        return SeedOutcome((), EnvironmentFailure(f"{name}: failed in the episode of seed {seed}: {error}"))


class Check(NamedTuple):
    """Whether an environment can be played: why not, or None."""

    reason: LramError | None


@dataclass(frozen=True)
class CheckJob(Job[str, Check]):
    """Whether environments can be played: each is opened and closed again."""

    bundle: Path
    options: EvaluationOptions
    registered: Mapping[str, bytes]

    @contextmanager
    def ready(self) -> Iterator[Callable[[str], Check]]:
        """See :class:`~lram_export.rollouts.workers.Job`."""
        register(self.registered)
        bundle = Bundle.open(self.bundle)
        yield lambda name: check(name, bundle, self.options)

    def reads(self) -> dict[Path, tuple[str, ...]]:
        """The manifest alone."""
        return {self.bundle: (MANIFEST_FILE,)}

    def versions(self) -> dict[str, str]:
        """Of the environments' packages: what can be played must not depend on which node looks."""
        return package_versions(self.options.environments)

    def moved(self, places: Mapping[Path, Path]) -> CheckJob:
        """See :class:`~lram_export.rollouts.workers.Job`."""
        return dataclasses.replace(self, bundle=places[self.bundle])


def check(name: str, bundle: Bundle, options: EvaluationOptions) -> Check:
    """Whether an environment can be played: it exists, is installed, can be made and fits."""
    try:
        with Stage(bundle, options, lambda failure: None) as stage:  # whether it closes is told when it was played
            stage.environment(name)
    except LramError as error:
        return Check(error)
    return Check(None)


def target_return(name: str, bundle: Bundle, options: EvaluationOptions) -> float:
    """The return to aim at in an environment, in its units."""
    if options.target_return is not None:
        return options.target_return
    wanted = options.of(name).target_return
    return wanted if wanted is not None else own_target_return(name, bundle.manifest.task)


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
