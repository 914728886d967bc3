"""95% intervals of what episodes show: of rates, of shares, of means, and of interquartile means over tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054
"""97.5% quantile of the normal distribution."""
RESAMPLES = 10_000
STRATIFIED_RESAMPLES = 2_000
"""Of the episodes of hundreds of tasks."""


class Estimate(NamedTuple):
    """A value with the bounds of its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """In whole percents: ``96% (87 to 99)``."""
        return f"{100 * self.value:.0f}% ({100 * self.low:.0f} to {100 * self.high:.0f})"


class Mean(NamedTuple):
    """A mean with the bounds of its 95% interval; None where a single value shows none."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """In whole numbers: ``12 (10 to 15)``, or ``12 (n/a)``."""
        bounds = "n/a" if self.low is None or self.high is None else f"{self.low:.0f} to {self.high:.0f}"
        return f"{self.value:.0f} ({bounds})"


def interval_json(estimate: Estimate | Mean | Interval | None) -> dict[str, float | None] | None:
    """Value and bounds by name; None where there is no estimate."""
    return None if estimate is None else estimate._asdict()


def success_rate(successes: int, episodes: int) -> Estimate:
    """Rate with its Wilson score interval (Wilson 1927), which holds for few episodes and near 0 and 1.

    Raises:
        ValueError: no episodes, or more successes than episodes.
    """
    if episodes < 1 or not 0 <= successes <= episodes:
        raise ValueError(f"successes: expected 0 to {episodes} of at least one episode, got {successes}")
    return _wilson(successes / episodes, episodes)


def share(counts: Sequence[int], sizes: Sequence[int], steps: int) -> Estimate:
    """Share of values that something holds for, with its Wilson score interval over correlated steps.

    The interval is that of as many independent draws as the values amount to. Values of one step are decided
    together, so they are one draw at most: there are no more than ``steps``. Steps of one episode resemble each
    other: there are fewer by the design effect (Kish 1965), which is how much more the shares of whole episodes
    scatter than independent steps would let them. Where no value counts nothing scatters, and all steps are taken
    for draws: the interval still ends above 0.

    Args:
        counts: how many values it holds for, per episode.
        sizes: how many values there are, per episode.
        steps: steps of all episodes.

    Raises:
        ValueError: no episodes, or counts that do not fit the sizes.
    """
    if (
        not sizes
        or len(counts) != len(sizes)
        or not all(0 <= c <= n and n > 0 for c, n in zip(counts, sizes, strict=True))
    ):
        raise ValueError("counts: expected 0 to the size of each of at least one episode")
    total, episodes = sum(sizes), len(sizes)
    rate, draws = sum(counts) / total, float(steps)
    if 0 < rate < 1:
        scatter = sum((c - rate * n) ** 2 for c, n in zip(counts, sizes, strict=True)) / total**2
        scatter = scatter * episodes / (episodes - 1) if episodes > 1 else rate * (1 - rate)
        draws = min(draws, rate * (1 - rate) / scatter) if scatter > 0 else draws
    return _wilson(rate, draws)


def steps_needed(bound: float) -> int:
    """Steps without a single counted value after which :func:`share` keeps to a bound above 0."""
    return math.ceil(Z95 * Z95 * (1 - bound) / bound)


def _wilson(rate: float, draws: float) -> Estimate:
    z = Z95
    scale = 1.0 + z * z / draws
    centre = (rate + z * z / (2 * draws)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / draws + z * z / (4 * draws * draws))
    # exact at both ends, where rounding would leave the rate outside of its interval
    low = 0.0 if rate == 0 else centre - half
    return Estimate(rate, low, 1.0 if rate == 1 else centre + half)


def mean(values: Sequence[float], seed: int = 0) -> Mean:
    """Mean with its percentile bootstrap interval (Efron 1979), which assumes no distribution of returns.

    One value has no interval: it does not show how values scatter. The resampling is seeded: the same values give
    the same interval. Raises ValueError without values.
    """
    if not values:
        raise ValueError("values: expected at least one")
    array = np.asarray(values, np.float64)
    if array.size == 1:
        return Mean(float(array[0]), None, None)
    rows = np.random.default_rng(seed).integers(0, array.size, (RESAMPLES, array.size))
    low, high = np.percentile(array[rows].mean(axis=1), (2.5, 97.5))
    return Mean(float(array.mean()), float(low), float(high))


class Interval(NamedTuple):
    """A number with the bounds of its 95% interval; None where there is only one value of everything."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """To two digits behind the point: ``0.81 (0.77 to 0.86)``, or ``0.81 (n/a)``."""
        bounds = "n/a" if self.low is None or self.high is None else f"{self.low:.2f} to {self.high:.2f}"
        return f"{self.value:.2f} ({bounds})"


def interquartile_mean(values: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """Mean of the middle half of the tasks' means, with its stratified bootstrap interval (Agarwal et al. 2021).

    Of n tasks the n // 4 with the lowest and as many with the highest mean are left out, as ``rliable`` does. Episodes
    are drawn anew within each task, never across: an interval says how well this policy's number is known on these
    tasks. Where every task has one episode, there is none. Raises ValueError without a value in a task.
    """
    return _stratified(values, _middle_half, seed)


def mean_of_means(values: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """Mean of the tasks' means, with the same kind of interval."""
    return _stratified(values, lambda means: means.mean(axis=-1), seed)


def _stratified(
    values: Sequence[Sequence[float]],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    seed: int,
) -> Interval:
    if not values or not all(values):
        raise ValueError("values: expected at least one of at least one task")
    tasks = [np.asarray(task, np.float64) for task in values]
    value = float(statistic(np.array([task.mean() for task in tasks])))
    if all(task.size == 1 for task in tasks):
        return Interval(value, None, None)
    draw = np.random.default_rng(seed)
    means = np.stack(
        [task[draw.integers(0, task.size, (STRATIFIED_RESAMPLES, task.size))].mean(axis=1) for task in tasks], axis=1
    )
    low, high = np.percentile(statistic(means), (2.5, 97.5))
    return Interval(value, float(low), float(high))


def _middle_half(means: NDArray[np.float64]) -> NDArray[np.float64]:
    cut = means.shape[-1] // 4
    ordered = np.sort(means, axis=-1)
    kept: NDArray[np.float64] = ordered[..., cut : means.shape[-1] - cut].mean(axis=-1)
    return kept
