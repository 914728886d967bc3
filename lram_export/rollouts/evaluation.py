"""Closed loop: does an exported policy still do its task, and does it do what the reference model does?

Every policy plays the same seeds. Whatever a target does is also shown to the reference, so that two
questions stay apart: how often an action differs when both were fed the same history, and where the two
ways through the environment part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace

from lram_export.bundle.bundle import Bundle
from lram_export.errors import EnvironmentFailure, UsageError
from lram_export.policy import Policy
from lram_export.progress import SILENT, Progress
from lram_export.rollouts.domains import domain_of
from lram_export.rollouts.environments import UnknownEnvironment, registered_here
from lram_export.rollouts.journal import Journal
from lram_export.rollouts.playing import (
    Check,
    CheckJob,
    EvaluationJob,
    Play,
    SeedOutcome,
    SeedTask,
    check,
    own_target_return,
    players,
    target_return,
)
from lram_export.rollouts.reference import ReferenceSource, reference_policy
from lram_export.rollouts.results import (
    REFERENCE,
    Agreement,
    EpisodeResult,
    Evaluation,
    EvaluationOptions,
    Played,
    PolicyResult,
)
from lram_export.rollouts.trajectories import Trajectory, answers_to, first_difference, rollout
from lram_export.rollouts.workers import Crew, WorkerDied, Workers

__all__ = [
    "REFERENCE",
    "Agreement",
    "EpisodeResult",
    "Evaluation",
    "EvaluationOptions",
    "PolicyResult",
    "ReferenceSource",
    "Trajectory",
    "answers_to",
    "evaluate",
    "first_difference",
    "own_target_return",
    "reference_policy",
    "rollout",
    "target_return",
]


def evaluate(
    bundle: Bundle,
    options: EvaluationOptions,
    reference: Policy | ReferenceSource | None,
    progress: Progress = SILENT,
    workers: Crew | None = None,
    journal: Journal | None = None,
) -> Evaluation:
    """Play every environment with the reference (if given) and with every target, on the same seeds.

    An environment that fails has the results of the seeds before, and the failure; the rest goes on. The results are
    the same however many processes play.

    Args:
        bundle: whose targets play.
        options: what to play, and in how many processes.
        reference: a loaded one, or what every process makes its own of; several processes need the latter.
        progress: how it shows that it goes on.
        workers: who plays, where that is not this process or as many of its own as ``options.parallel`` says.
        journal: what was played before, which is not played again, and where to write what is played now.

    Raises:
        UsageError: an environment that does not exist, or one that is not installed or does not fit the bundle and
            is not optional, or none that can be played; before anything is played.
        EnvironmentFailure: one that cannot be made and is not optional; before anything is played.
    """
    evaluation = Evaluation(options)
    registered = registered_here(options.environments)
    if (workers is not None or options.parallel > 1) and isinstance(reference, Policy):
        raise UsageError(
            "reference: several processes cannot share a loaded one; give what it is made of instead, ReferenceSource()"
        )
    with ExitStack() as opened:
        if workers is None and options.parallel == 1:
            playable = _playable(evaluation, (check(name, bundle, options) for name in options.environments), progress)
            if isinstance(reference, ReferenceSource):
                reference = opened.enter_context(reference.load(bundle))
            play = opened.enter_context(players(bundle, playable, reference, evaluation.failed))
            play = play if journal is None else _written(play, journal)
        else:
            crew = workers or opened.enter_context(Workers(options.parallel))
            checks = crew.results(CheckJob(bundle.path, options, registered), options.environments)
            playable = _playable(evaluation, checks, progress)
            source = reference if isinstance(reference, ReferenceSource) else None
            if source is not None and workers is not None:  # who may have to be sent what it is made of
                source = source.found_here()
            job = EvaluationJob(bundle.path, playable, source, registered)
            play = opened.enter_context(Outcomes(crew, job, evaluation.failed, journal)).play
        for name in playable.environments:
            try:
                _play(name, play, bundle, reference is not None, evaluation, progress)
            except EnvironmentFailure as failure:
                evaluation.failed(failure)
    evaluation.failures = {n: evaluation.failures[n] for n in options.environments if n in evaluation.failures}
    return evaluation


def _playable(evaluation: Evaluation, checks: Iterable[Check], progress: Progress) -> EvaluationOptions:
    """The options without the environments that cannot be played, why not of which is kept."""
    options = evaluation.options
    with progress.stage("looking which environments can be played", len(options.environments)) as advance:
        for name, (reason,) in zip(options.environments, checks, strict=True):
            if reason is not None:
                if name not in options.optional:
                    raise reason
                if isinstance(reason, UnknownEnvironment) and domain_of(name) is None:
                    raise UnknownEnvironment(str(reason).replace("--env", "--suite", 1))
                evaluation.unplayable[name] = str(reason).removeprefix(f"--env {name}: ").removeprefix(f"{name}: ")
            advance(1)
    names = tuple(name for name in options.environments if name not in evaluation.unplayable)
    if not names:
        name, why = next(iter(evaluation.unplayable.items()))
        raise UsageError(
            f"--suite: none of its {len(options.environments)} environments can be played here; {name}: {why}"
        )
    return replace(options, environments=names)


def _written(play: Play, journal: Journal) -> Play:
    """Plays only what was not played before, and writes it down."""

    def again(name: str, seed: int) -> Iterator[Played]:
        known = journal.outcome((name, seed))
        if known is not None:
            yield from known.again()
            return
        played: list[Played] = []
        for episode in play(name, seed):
            played.append(episode)
            yield episode
        journal.keep((name, seed), SeedOutcome(tuple(played)))

    return again


class Outcomes:
    """What other processes play, in the order of environments and seeds.

    Of an environment that has failed no later seed is asked for. Where that took a process with it, the others are
    started anew for what comes after. What a journal has is not played again, and what it has not is written into it.
    """

    def __init__(
        self,
        crew: Crew,
        job: EvaluationJob,
        failed: Callable[[EnvironmentFailure], None],
        journal: Journal | None = None,
    ) -> None:
        self._crew, self._job, self._failed, self._journal = crew, job, failed, journal
        self._waiting = deque((name, seed) for name in job.options.environments for seed in job.options.seeds(name))
        self._before: dict[SeedTask, SeedOutcome] = {}
        self._results = self._begun()

    def _begun(self) -> Generator[SeedOutcome, None, None]:
        """The results of what waits, but for what the journal has by now."""
        journal = self._journal
        if journal is None:
            return self._crew.results(self._job, list(self._waiting))
        found = {task: journal.outcome(task) for task in self._waiting}
        self._before = {task: outcome for task, outcome in found.items() if outcome is not None}
        tasks = [task for task in self._waiting if task not in self._before]
        return self._crew.results(self._job, tasks, lambda number, outcome: journal.keep(tasks[number], outcome))

    def play(self, name: str, seed: int) -> Iterator[Played]:
        """The episode of every policy; raises EnvironmentFailure."""
        while self._waiting[0] != (name, seed):  # of one that has failed
            self._next()
        yield from self._next().again()

    def _next(self) -> SeedOutcome:
        name, seed = self._waiting.popleft()
        known = self._before.get((name, seed))
        if known is not None:
            return known
        try:
            outcome = next(self._results)
        except WorkerDied as died:
            while self._waiting and self._waiting[0][0] == name:
                self._waiting.popleft()
            self._results = self._begun()
            failure = EnvironmentFailure(f"{name}: failed in the episode of seed {seed}: {died}")
            return SeedOutcome((), failure)
        for failure in outcome.closing:
            self._failed(failure)
        return outcome

    def __enter__(self) -> Outcomes:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                while self._waiting:  # of an environment that has failed
                    self._next()
                next(self._results, None)  # closes what is open there
        except EnvironmentFailure as failure:
            self._failed(failure)
        finally:
            self._results.close()


def _play(name: str, play: Play, bundle: Bundle, compared: bool, evaluation: Evaluation, progress: Progress) -> None:
    options = evaluation.options
    aim = target_return(name, bundle, options)
    results = {REFERENCE: PolicyResult(name, REFERENCE, "fp32", aim)} if compared else {}
    for target in options.targets:
        agreement = Agreement() if compared else None
        results[target] = PolicyResult(name, target, bundle.artifact(target).precision, aim, agreement=agreement)
    evaluation.results += results.values()
    seeds = options.seeds(name)
    with progress.stage(name, len(seeds) * len(results)) as advance:
        for seed in seeds:
            for played in play(name, seed):
                results[played.policy].add(played)
                advance(1)
