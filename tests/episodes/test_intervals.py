"""The 95% intervals of rates and means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lram_export.episodes import intervals


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


def test_the_interval_of_a_mean_is_repeatable_and_one_value_has_none() -> None:
    values = [1.0, 5.0, 2.0]
    assert intervals.mean(values) == intervals.mean(values)
    assert intervals.mean([4.0]) == (4.0, None, None)
    assert str(intervals.mean([4.0])) == "4 (n/a)" and str(intervals.mean([4.0, 4.0])) == "4 (4 to 4)"
    with pytest.raises(ValueError, match="expected at least one"):
        intervals.mean([])


class TestShare:
    def test_nothing_seen_leaves_a_bound_that_steps_make_smaller(self) -> None:
        few, many = (intervals.share([0] * 5, [4 * n // 5] * 5, n) for n in (100, 1000))
        assert few.value == few.low == many.low == 0
        assert few.high == intervals.success_rate(0, 100).high
        assert 0 < many.high < few.high

    @pytest.mark.parametrize("bound", [0.5, 0.05, 0.005])
    def test_the_steps_needed_for_a_bound_are_enough_and_not_one_too_many(self, bound: float) -> None:
        needed = intervals.steps_needed(bound)
        assert intervals.share([0], [needed], needed).high <= bound < intervals.share([0], [needed], needed - 1).high

    def test_values_of_one_step_are_no_more_than_one_draw(self) -> None:
        steps = [2, 3, 1, 2, 2]
        one = intervals.share(steps, [100] * 5, 500)
        four = intervals.share([4 * n for n in steps], [400] * 5, 500)
        assert one == four and one.high == pytest.approx(intervals.success_rate(10, 500).high)

    def test_what_happens_in_one_episode_only_is_few_draws(self) -> None:
        alike, apart = (intervals.share(counts, [100] * 5, 500) for counts in ([2] * 5, [10, 0, 0, 0, 0]))
        assert alike.value == apart.value and alike.high < apart.high

    def test_it_holds_the_rate_of_episodes_that_differ_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(0)
        held = 0
        for _ in range(400):
            rates = rng.beta(2, 18, 20)  # mean 0.1, and no two episodes alike
            estimate = intervals.share(rng.binomial(200, rates).tolist(), [200] * 20, 4000)
            held += estimate.low <= 0.1 <= estimate.high
        assert 0.90 <= held / 400 <= 0.99

    @given(st.lists(st.integers(1, 50).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), min_size=1))
    def test_the_share_lies_within_its_interval(self, episodes: list[tuple[int, int]]) -> None:
        counts, sizes = zip(*episodes, strict=True)
        estimate = intervals.share(counts, sizes, sum(sizes))
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1

    @pytest.mark.parametrize(("counts", "sizes"), [([], []), ([3], [2]), ([0], [0]), ([1], [2, 2])])
    def test_impossible_counts_are_refused(self, counts: list[int], sizes: list[int]) -> None:
        with pytest.raises(ValueError, match="counts: expected"):
            intervals.share(counts, sizes, 10)
