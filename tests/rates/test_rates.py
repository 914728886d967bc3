"""Rates that are another, and rates that are a whole multiple."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lram_export.errors import UsageError
from lram_export.rates import MOST_TICKS, may_spin, other_rate, ticks_per_step


def test_another_rate_is_one_line() -> None:
    assert other_rate("arm.lram", 50, 100, "measured") == "arm.lram was trained at 50 Hz, measured at 100 Hz"


@pytest.mark.parametrize(("trained", "rate"), [(None, 100.0), (50.0, None), (50.0, 50.0), (100 / 3, 33.3333333)])
def test_nothing_is_said_where_nothing_is_known_or_different(trained: float | None, rate: float | None) -> None:
    assert other_rate("arm.lram", trained, rate, "measured") is None


def test_threads_may_spin_where_steps_follow_closely() -> None:
    assert all(may_spin(rate) for rate in (None, 1000.0, 201.0))
    assert not any(may_spin(rate) for rate in (200.0, 50.0, 0.1))


@given(st.floats(1e-3, 1e6), st.integers(1, MOST_TICKS))
def test_every_whole_multiple_is_taken(rate: float, ticks: int) -> None:
    assert ticks_per_step(rate, rate * ticks) == ticks


@pytest.mark.parametrize("controller", [120.0, 25.0, 49.9, 50.01, 1e-300, 50.0 * (MOST_TICKS + 1), 1e300])
def test_what_is_none_is_refused(controller: float) -> None:
    with pytest.raises(UsageError, match=r"controller_rate: expected a whole multiple of the policy's 50 Hz, .* got "):
        ticks_per_step(50.0, controller)


def test_a_ratio_beyond_all_numbers_is_refused() -> None:
    with pytest.raises(UsageError, match="a whole multiple"):
        ticks_per_step(1e-300, 1e300)
