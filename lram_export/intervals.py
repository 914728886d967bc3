"""95% intervals of what episodes show: of a rate of successes, and of a mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z95 = 1.959963984540054
"""97.5% quantile of the normal distribution."""
RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A value with the bounds of its 95% interval."""

    value: float
    low: float
    high: float


def success_rate(successes: int, episodes: int) -> Estimate:
    """Rate with its Wilson score interval (Wilson 1927), which holds for few episodes and near 0 and 1.

    Raises:
        ValueError: no episodes, or more successes than episodes.
    """
    if episodes < 1 or not 0 <= successes <= episodes:
        raise ValueError(f"successes: expected 0 to {episodes} of at least one episode, got {successes}")
    rate, z = successes / episodes, Z95
    scale = 1.0 + z * z / episodes
    centre = (rate + z * z / (2 * episodes)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes * episodes))
    # exact at both ends, where rounding would leave the rate outside of its interval
    low = 0.0 if successes == 0 else centre - half
    return Estimate(rate, low, 1.0 if successes == episodes else centre + half)


def mean(values: Sequence[float], seed: int = 0) -> Estimate:
    """Mean with its percentile bootstrap interval (Efron 1979), which assumes no distribution of returns.

    The resampling is seeded: the same values give the same interval. Raises ValueError without values.
    """
    if not values:
        raise ValueError("values: expected at least one")
    array = np.asarray(values, np.float64)
    rows = np.random.default_rng(seed).integers(0, array.size, (RESAMPLES, array.size))
    low, high = np.percentile(array[rows].mean(axis=1), (2.5, 97.5))
    return Estimate(float(array.mean()), float(low), float(high))
