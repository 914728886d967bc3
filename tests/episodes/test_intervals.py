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


EPISODES = np.array([
    [0.748, 0.986, 0.802, -0.007, 0.293, 1.047, -0.331, 0.707, 0.322, 0.146],
    [0.165, 0.838, 0.459, 0.293, 0.339, 0.827, -0.624, 0.687, 0.785, 0.496],
    [0.243, 0.778, 0.531, 0.023, 0.565, 0.672, -0.003, 1.042, 0.651, 0.44],
    [0.653, 0.913, 0.469, 0.244, 0.64, 0.487, 0.22, 0.851, 0.637, 0.968],
    [0.816, 0.597, 0.794, 0.369, 0.253, 1.044, -0.011, 0.988, 1.157, 0.299],
    [0.676, 0.781, 0.808, -0.072, 0.155, 0.825, 0.23, 1.108, 0.466, 0.269],
    [0.787, 0.399, 0.66, 0.201, 0.614, 1.046, -0.077, 0.729, 0.735, 0.849],
    [0.518, 0.821, 0.864, 0.195, 0.251, 0.595, 0.002, 0.71, 1.089, 0.631],
])  # fmt: skip
"""Eight episodes of ten tasks."""


class TestInterquartileMeans:
    """Beside rliable 1.2.0 (with arch 7.2.0, scipy 1.17.1), which gave::

    metrics.aggregate_iqm(EPISODES.mean(axis=0, keepdims=True))                      # also of its first 7 columns
    statistics = lambda x: np.array([scipy.stats.trim_mean(x.mean(axis=0), 0.25), x.mean()])
    library.get_interval_estimates({"a": EPISODES}, statistics, reps=50000)
    """

    def test_the_value_is_that_of_rliable(self) -> None:
        assert intervals.interquartile_mean(EPISODES.T.tolist()).value == pytest.approx(0.6074166666666666, rel=1e-12)
        assert intervals.interquartile_mean(EPISODES.T[:7].tolist()).value == pytest.approx(0.51155, rel=1e-12)

    def test_the_intervals_are_those_of_rliable_as_far_as_resamples_differ(self) -> None:
        iqm, mean = (f(EPISODES.T.tolist()) for f in (intervals.interquartile_mean, intervals.mean_of_means))
        assert (iqm.low, iqm.high) == pytest.approx((0.54297813, 0.65960417), abs=0.004)
        assert mean.value == pytest.approx(0.5396625, rel=1e-12)
        assert (mean.low, mean.high) == pytest.approx((0.49337469, 0.585575), abs=0.004)
        assert iqm == intervals.interquartile_mean(EPISODES.T.tolist())

    def test_episodes_are_never_drawn_across_tasks(self) -> None:
        constant = [[0.0] * 5, [1.0] * 5, [2.0] * 5]
        assert intervals.interquartile_mean(constant) == (1.0, 1.0, 1.0)

    def test_tasks_may_have_different_numbers_of_episodes(self) -> None:
        found = intervals.interquartile_mean([[0.0, 1.0], [0.5], [0.25, 0.5, 0.75], [9.0]])
        assert found.value == 0.5 and found.low is not None and found.high is not None
        assert 0.375 <= found.low <= found.high <= 0.875  # the middle two of what can be drawn

    def test_one_episode_each_shows_no_interval(self) -> None:
        assert intervals.interquartile_mean([[0.5], [1.5]]) == (1.0, None, None)
        assert str(intervals.interquartile_mean([[0.5], [1.5]])) == "1.00 (n/a)"

    @pytest.mark.parametrize("values", [[], [[]], [[1.0], []]])
    def test_nothing_is_refused(self, values: list[list[float]]) -> None:
        with pytest.raises(ValueError, match="at least one"):
            intervals.interquartile_mean(values)
