"""Recordings of simulated episodes, which one process plays or several."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lram_export.bundle.bundle import Bundle
from lram_export.episodes.steps import RecordedSteps, StepSequence, joined
from lram_export.errors import LramError, UsageError
from lram_export.policy import Policy, load_policy
from lram_export.progress import SILENT, Progress
from lram_export.rollouts.environments import check_packages, package_versions, register, registered_here
from lram_export.rollouts.environments.fitting import FittedEnvironment
from lram_export.rollouts.episode_folder import EpisodeFolder
from lram_export.rollouts.playing import own_target_return
from lram_export.rollouts.recording import RecordingRuntime
from lram_export.rollouts.trajectories import rollout
from lram_export.rollouts.workers import Crew, Job, WorkerDied, Workers, share
from lram_export.runtimes import RUNTIMES, unavailable
from lram_export.system.machine import suitable_threads

SeedTask = tuple[str, int]
Record = Callable[[SeedTask], StepSequence]
"""(environment, seed) -> the steps of its episode."""


@dataclass(frozen=True)
class EpisodePlan:
    """Which episodes to play for a recording.

    ``environments`` are ``family/task``; ``target_return`` None: the task table's for each environment, else
    the policy's own; ``rewards`` False: the policy is given none, like a robot that has none.
    """

    environments: tuple[str, ...]
    episodes: int
    seed: int
    rewards: bool = True
    target_return: float | None = None

    @property
    def seeds(self) -> range:
        """The same in every environment."""
        return range(self.seed, self.seed + self.episodes)


def record_episodes(policy: Policy, plan: EpisodePlan, progress: Progress = SILENT) -> RecordedSteps:
    """The steps a policy takes in simulated episodes, environment after environment, seed after seed.

    Raises:
        UsageError: an environment that does not exist, is not installed or does not fit; or a policy of several rows.
        EnvironmentFailure: an environment failed.
    """
    with _recorder(policy, plan) as record:
        return _recorded(plan, map(record, _tasks(plan)), progress)


def record_in_parallel(
    bundle: str | Path,
    target: str | None,
    plan: EpisodePlan,
    processes: int,
    *,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> RecordedSteps:
    """The same in several processes, each with a policy of its own; with the same ``threads`` the same, to the bit.

    Raises:
        UsageError, EnvironmentFailure: as above.
        LramError: a bundle that is damaged, or a process that died.
    """
    if threads is None:
        manifest = Bundle.open(bundle).manifest
        threads = share(suitable_threads(manifest.parameters, 1), processes)
    job = RecordingJob(Path(bundle), target, threads, plan, registered_here(plan.environments))
    with Workers(processes) as workers:
        return _recorded(plan, workers.results(job, _tasks(plan)), progress)


def record_with_crew(
    bundle: Bundle,
    target: str,
    plan: EpisodePlan,
    threads: int,
    crew: Crew,
    kept: EpisodeFolder,
    progress: Progress = SILENT,
) -> RecordedSteps:
    """The same by a crew; every episode is written into a folder as it ends, and one that is there is not played again.

    Raises:
        UsageError, EnvironmentFailure, LramError: as above; the episodes in the folder stay.
    """
    job = RecordingJob(bundle.path, target, threads, plan, registered_here(plan.environments))
    tasks = _tasks(plan)
    missing = [task for task in tasks if not kept.has(task)]
    for _episode in crew.results(job, missing, lambda number, episode: kept.keep(missing[number], episode)):
        pass
    return _recorded(plan, map(kept.episode, tasks), progress)


@dataclass(frozen=True)
class RecordingJob(Job[SeedTask, StepSequence]):
    """A policy that is recorded, for another process. ``registered`` are environments that only this one knows."""

    bundle: Path
    target: str | None
    threads: int
    plan: EpisodePlan
    registered: Mapping[str, bytes]

    @contextmanager
    def ready(self) -> Iterator[Record]:
        """See :class:`~lram_export.rollouts.workers.Job`."""
        register(self.registered)
        with ExitStack() as opened:
            policy = opened.enter_context(load_policy(self.bundle, self.target, threads=self.threads, batch=1))
            yield opened.enter_context(_recorder(policy, self.plan))

    def group(self, task: SeedTask) -> str:
        """The environment, as all are open anyway: so each node plays few of them."""
        return task[0]

    def reads(self) -> dict[Path, tuple[str, ...]]:
        """What the target is run from."""
        return {self.bundle: Bundle.open(self.bundle).read_by(self._target)}

    def moved(self, places: Mapping[Path, Path]) -> RecordingJob:
        """See :class:`~lram_export.rollouts.workers.Job`."""
        return dataclasses.replace(self, bundle=places[self.bundle])

    def versions(self) -> dict[str, str]:
        """Of the target's packages, the environments' and numpy."""
        own = {"numpy": np.__version__, **RUNTIMES[self._target].versions()}
        return {**own, **package_versions(self.plan.environments)}

    def unfit(self) -> str | None:
        """A target that does not run here, or an environment whose packages are missing."""
        artifact = Bundle.open(self.bundle).load_artifact(self._target, 1)
        reason = unavailable(self._target) or unavailable(self._target, artifact)
        for name in self.plan.environments:
            check_packages(name)
        return None if reason is None else f"target '{self._target}': {reason}"

    def lost(self, task: SeedTask, error: LramError) -> StepSequence:
        """Nothing stands for an episode; what killed its processes is named."""
        if isinstance(error, WorkerDied):
            raise LramError(f"{task[0]}: failed in the episode of seed {task[1]}: {error}")
        raise error

    @property
    def _target(self) -> str:
        return self.target or Bundle.open(self.bundle).targets[0]


@contextmanager
def _recorder(policy: Policy, plan: EpisodePlan) -> Iterator[Record]:
    if policy.spec.batch_size != 1:
        raise UsageError(f"policy: an episode has one row, got {policy.spec.batch_size}; load_policy(..., batch=1)")
    recorder = RecordingRuntime(policy.runtime)
    watched = Policy(recorder, policy.task)
    with ExitStack() as opened:
        environments = {
            name: opened.enter_context(FittedEnvironment.open(name, policy.spec, policy.task))
            for name in plan.environments
        }

        def record(task: SeedTask) -> StepSequence:
            name, seed = task
            aim = own_target_return(name, policy.task) if plan.target_return is None else plan.target_return
            rollout(environments[name], watched, seed, aim, rewards=plan.rewards)
            return recorder.recorded()

        yield record


def _tasks(plan: EpisodePlan) -> list[SeedTask]:
    return [(name, seed) for name in plan.environments for seed in plan.seeds]


def _recorded(plan: EpisodePlan, episodes: Iterable[StepSequence], progress: Progress) -> RecordedSteps:
    """All episodes in their order, one after the other."""
    given = iter(episodes)
    found: list[StepSequence] = []
    of: list[int] = []
    for number, name in enumerate(plan.environments):
        with progress.stage(name, plan.episodes) as advance:
            for seed in plan.seeds:
                try:
                    episode = next(given)
                except WorkerDied as died:
                    raise LramError(f"{name}: failed in the episode of seed {seed}: {died}") from None
                found.append(episode)
                of += [number] * len(episode)
                advance(1)
    next(given, None)  # closes what other processes have opened
    inputs = joined(found, np.concatenate).inputs
    return RecordedSteps(inputs, environment=np.array(of, np.int32), environments=plan.environments)
