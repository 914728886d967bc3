"""What an evaluation is asked and what it finds: episodes, agreement with the reference, intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lram_export.episodes import intervals
from lram_export.episodes.intervals import Estimate, Mean
from lram_export.errors import EnvironmentFailure
from lram_export.rollouts.environments import PATIENCE
from lram_export.rollouts.suites import Wanted

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
        target_return: return to aim at, in the environment's units; None: what is ``wanted`` of the environment,
            else the task table's for it, else the bundle's.
        threads: of each target's runtime.
        parallel: processes that play episodes at the same time, each with policies of its own. With the same
            ``threads`` the results are the same, to the bit.
        wanted: what differs from that in single environments.
        optional: environments that are left out where they cannot be played here; the others must.
        commands: by family, what makes its environments in a process of its own.
        patience: seconds that such a process may take for one answer.
    """

    environments: tuple[str, ...]
    targets: tuple[str, ...]
    episodes: int = 10
    seed: int = 0
    rewards: bool = True
    target_return: float | None = None
    threads: int = 1
    parallel: int = 1
    wanted: tuple[Wanted, ...] = ()
    optional: tuple[str, ...] = ()
    commands: Mapping[str, str] = field(default_factory=dict)
    patience: float = PATIENCE

    def of(self, environment: str) -> Wanted:
        """What is wanted of an environment."""
        return next((w for w in self.wanted if w.environment == environment), Wanted(environment))

    def seeds(self, environment: str) -> range:
        """Of its episodes."""
        return range(self.seed, self.seed + (self.of(environment).episodes or self.episodes))

    def command(self, environment: str) -> str | None:
        """What makes an environment; None where this process does."""
        return self.of(environment).command or self.commands.get(environment.partition("/")[0])


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

    def merge(self, other: Agreement) -> None:
        """Add the steps of other episodes."""
        self.steps += other.steps
        self.steps_different += other.steps_different
        self.largest_tie = max(self.largest_tie, other.largest_tie)
        self.max_logit_error = max(self.max_logit_error, other.max_logit_error)


@dataclass(frozen=True)
class Played:
    """An episode of one policy, and how it agrees with the reference, if there is one."""

    policy: str
    episode: EpisodeResult
    agreement: Agreement | None
    policy_seconds: float
    environment_seconds: float


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

    def add(self, played: Played) -> None:
        """Add one episode."""
        self.episodes.append(played.episode)
        self.policy_seconds += played.policy_seconds
        self.environment_seconds += played.environment_seconds
        if self.agreement is not None and played.agreement is not None:
            self.agreement.merge(played.agreement)


@dataclass
class Evaluation:
    """All results.

    ``failures``: what went wrong in an environment, by its name. Its results end there; those of others do not.
    ``unplayable``: why optional environments could not be played here, by their names.
    """

    options: EvaluationOptions
    results: list[PolicyResult] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    unplayable: dict[str, str] = field(default_factory=dict)

    @property
    def failure(self) -> str | None:
        """The first failure of :attr:`failures`; None where nothing failed."""
        return next(iter(self.failures.values()), None)

    def failed(self, failure: EnvironmentFailure) -> None:
        """Keep the first failure of an environment."""
        self.failures.setdefault(failure.environment, str(failure))

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
