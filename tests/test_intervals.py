"""The 95% intervals of rates and means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lram_export import intervals


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        # Newcombe 1998, table I, method 3: the Wilson score interval without continuity correction
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_success_rates_have_the_published_interval(successes: int, episodes: int, low: float, high: float) -> None:
    estimate = intervals.success_rate(successes, episodes)
    assert estimate.value == successes / episodes
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (low, high)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_rate_lies_within_its_interval_and_the_interval_within_0_and_1(case: tuple[int, int]) -> None:
    estimate = intervals.success_rate(*case)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.parametrize(("successes", "episodes"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_counts_are_refused(successes: int, episodes: int) -> None:
    with pytest.raises(ValueError, match="successes: expected"):
        intervals.success_rate(successes, episodes)


def test_the_interval_of_a_mean_holds_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        estimate = intervals.mean(rng.normal(3.0, 2.0, 40).tolist())
        held += estimate.low <= 3.0 <= estimate.high
    assert 0.90 <= held / 200 <= 0.99


def test_the_interval_of_a_mean_is_repeatable_and_exact_for_one_value() -> None:
    values = [1.0, 5.0, 2.0]
    assert intervals.mean(values) == intervals.mean(values)
    assert intervals.mean([4.0]) == (4.0, 4.0, 4.0)
    with pytest.raises(ValueError, match="expected at least one"):
        intervals.mean([])
