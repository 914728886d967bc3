"""Normalized scores: what a policy's returns are worth beside a random policy and an expert, per domain and over all.

The score of a task is the mean over its episodes of (return - random) / (expert - random), with published constants
(:mod:`lram_export.rollouts.domains`). A task without such constants has no score, and neither has one whose return is
not what they were measured in; ``unscored`` says which and why. A domain's number is the interquartile mean of its
tasks' scores, with a stratified bootstrap interval, and their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lram_export.episodes import intervals
from lram_export.episodes.intervals import Interval
from lram_export.rollouts.domains import Domain, domain_of, domains, scale_of
from lram_export.rollouts.results import Evaluation, PolicyResult

OVERALL = "overall"


@dataclass(frozen=True)
class TaskScore:
    """The normalized scores of one policy's episodes in one environment."""

    environment: str
    episodes: tuple[float, ...]

    @property
    def value(self) -> float:
        """Their mean."""
        return sum(self.episodes) / len(self.episodes)


@dataclass(frozen=True)
class DomainScore:
    """What one policy is worth in a domain, or over all.

    Attributes:
        domain: its name, or ``overall``.
        kind: what a score of 1 is: ``human``, ``data``; ``both`` over domains of either.
        policy: a target, or the reference.
        tasks: the scored tasks.
        played: how many were played, scored or not.
        iqm: interquartile mean of the tasks' scores with its interval; None where no task is scored.
        mean: of the tasks' scores.
        success: mean of the tasks' success rates; None where no task tells of success.
    """

    domain: str
    kind: str
    policy: str
    tasks: tuple[TaskScore, ...]
    played: int
    iqm: Interval | None
    mean: Interval | None
    success: float | None


@dataclass(frozen=True)
class Scores:
    """All of an evaluation's scores; ``unscored``: why a played task has none; ``sources`` by domain."""

    domains: tuple[DomainScore, ...]
    unscored: dict[str, str]
    sources: dict[str, str]


def scores(evaluation: Evaluation) -> Scores:
    """The scores of an evaluation, those over all last. Environments that belong to no domain are left out."""
    by_domain: dict[str, list[PolicyResult]] = {}
    unscored: dict[str, str] = {}
    for result in evaluation.results:
        domain = domain_of(result.environment)
        if domain is not None and result.episodes:
            by_domain.setdefault(domain.name, []).append(result)
            reason = why_unscored(result.environment, domain)
            if reason is not None:
                unscored[result.environment] = reason
    played = [domain for name, domain in domains().items() if name in by_domain]
    everything = [result for domain in played for result in by_domain[domain.name]]
    found = [
        score for domain in played for score in _by_policy(domain.name, domain.kind, by_domain[domain.name], unscored)
    ]
    if len(played) > 1:
        kinds = {domain.kind for domain in played}
        found += _by_policy(OVERALL, kinds.pop() if len(kinds) == 1 else "both", everything, unscored)
    return Scores(tuple(found), unscored, {domain.name: domain.source for domain in played})


def why_unscored(environment: str, domain: Domain) -> str | None:
    """Why a task of a domain has no score; None where it has."""
    if scale_of(environment) is None:
        return "no random and expert scores are published"
    if domain.name == "atari":
        return (
            "its return is that of one life, in rewards clipped to their sign; the published scores are of whole games"
        )
    return None


def _by_policy(name: str, kind: str, results: Sequence[PolicyResult], unscored: dict[str, str]) -> list[DomainScore]:
    found = []
    for policy in dict.fromkeys(result.policy for result in results):
        own = [result for result in results if result.policy == policy]
        tasks = tuple(_score(result) for result in own if result.environment not in unscored)
        episodes = [task.episodes for task in tasks]
        rates = [result.success.value for result in own if result.success is not None]
        found.append(
            DomainScore(
                domain=name,
                kind=kind,
                policy=policy,
                tasks=tasks,
                played=len(own),
                iqm=intervals.interquartile_mean(episodes) if tasks else None,
                mean=intervals.mean_of_means(episodes) if tasks else None,
                success=sum(rates) / len(rates) if rates else None,
            )
        )
    return found


def _score(result: PolicyResult) -> TaskScore:
    scale = scale_of(result.environment)
    assert scale is not None
    return TaskScore(result.environment, tuple(scale.normalized(e.episode_return) for e in result.episodes))
