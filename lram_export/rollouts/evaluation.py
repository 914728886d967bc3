"""Closed loop: does an exported policy still do its task, and does it do what the reference model does?

Every policy plays the same seeds. Whatever a target does is also shown to the reference, so that two
questions stay apart: how often an action differs when both were fed the same history, and where the two
ways through the environment part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lram_export.bundle.bundle import Bundle
from lram_export.errors import EnvironmentFailure, UsageError
from lram_export.policy import Policy
from lram_export.progress import SILENT, Progress
from lram_export.rollouts.environments import registered_here
from lram_export.rollouts.playing import EvaluationJob, Play, own_target_return, players, target_return
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
from lram_export.rollouts.workers import WorkerDied, Workers

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
    workers: Workers | None = None,
) -> Evaluation:
    """Play every environment with the reference (if given) and with every target, on the same seeds.

    An environment that fails ends the evaluation; the results so far and the failure are returned. They are the same
    however many processes play.

    Args:
        bundle: whose targets play.
        options: what to play, and in how many processes.
        reference: a loaded one, or what every process makes its own of; several processes need the latter.
        progress: how it shows that it goes on.
        workers: processes to play in, where they are to serve more than this evaluation; default: some of its own.

    Raises:
        UsageError: an environment that does not exist, is not installed or does not fit the bundle; before
            anything is played.
    """
    evaluation = Evaluation(options)
    try:
        with ExitStack() as opened:
            if options.parallel == 1:
                if isinstance(reference, ReferenceSource):
                    reference = opened.enter_context(reference.load(bundle))
                play = opened.enter_context(players(bundle, options, reference))
            else:
                play = opened.enter_context(_players_elsewhere(bundle, options, reference, workers))
            for name in options.environments:
                _play(name, play, bundle, reference is not None, evaluation, progress)
    except EnvironmentFailure as failure:
        evaluation.failure = str(failure)
    return evaluation


@contextmanager
def _players_elsewhere(
    bundle: Bundle, options: EvaluationOptions, reference: Policy | ReferenceSource | None, workers: Workers | None
) -> Iterator[Play]:
    """Other processes, which play all seeds in order; they are asked for in the same order."""
    if isinstance(reference, Policy):
        raise UsageError(
            "reference: several processes cannot share a loaded one; give what it is made of instead, ReferenceSource()"
        )
    job = EvaluationJob(bundle.path, options, reference, registered_here(options.environments))
    tasks = [(name, seed) for name in options.environments for seed in _seeds(options)]
    with ExitStack() as opened:
        crew = workers or opened.enter_context(Workers(options.parallel))
        outcomes = crew.results(job, tasks)

        def play(name: str, seed: int) -> Iterator[Played]:
            try:
                outcome = next(outcomes)
            except WorkerDied as died:
                raise EnvironmentFailure(f"{name}: failed in the episode of seed {seed}: {died}") from None
            yield from outcome.again()

        try:
            yield play
            next(outcomes, None)  # closes what was opened there
        finally:
            outcomes.close()


def _seeds(options: EvaluationOptions) -> range:
    return range(options.seed, options.seed + options.episodes)


def _play(name: str, play: Play, bundle: Bundle, compared: bool, evaluation: Evaluation, progress: Progress) -> None:
    options = evaluation.options
    aim = target_return(name, bundle, options)
    results = {REFERENCE: PolicyResult(name, REFERENCE, "fp32", aim)} if compared else {}
    for target in options.targets:
        agreement = Agreement() if compared else None
        results[target] = PolicyResult(name, target, bundle.artifact(target).precision, aim, agreement=agreement)
    evaluation.results += results.values()
    with progress.stage(name, options.episodes * len(results)) as advance:
        for seed in _seeds(options):
            for played in play(name, seed):
                results[played.policy].add(played)
                advance(1)
