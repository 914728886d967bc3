"""What is sent between two steps: held, or on the line between what was sent and what is to come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lram_export.errors import UsageError
from lram_export.interpolation import HOLD, LINEAR, Between
from lram_export.rates import MOST_TICKS

anything = st.floats(allow_nan=False, allow_infinity=False, width=32)
rows = arrays(np.float32, (2, 3), elements=anything)


def sent(between: Between, action: Any, ticks: range | None = None) -> list[Any]:
    """What a controller gets of a step."""
    between.aim(action)
    return [between.at(tick) for tick in ticks or range(between.ticks)]


@given(st.lists(rows, min_size=1, max_size=4), st.integers(1, 12))
def test_held_actions_are_those_of_the_steps(steps: list[Any], ticks: int) -> None:
    between = Between(ticks, HOLD)
    for action in steps:
        assert all(np.array_equal(each, action) for each in sent(between, action))


@given(st.lists(rows, min_size=1, max_size=4), st.integers(1, 12) | st.just(MOST_TICKS))
def test_a_line_ends_at_the_action_and_never_leaves_what_it_connects(steps: list[Any], ticks: int) -> None:
    between, before = Between(ticks, LINEAR), steps[0]
    for action in steps:
        some = range(ticks) if ticks < 20 else range(ticks - 3, ticks)
        found = np.stack(sent(between, action, some))
        assert found.dtype == np.float32 and found[-1].tobytes() == action.tobytes()
        assert (found >= np.minimum(before, action)).all() and (found <= np.maximum(before, action)).all()
        going_up = action >= before
        assert (np.sign(np.diff(np.concatenate([before[None], found]), axis=0)) * np.where(going_up, 1, -1) >= 0).all()
        before = action


@given(rows, st.integers(1, 12))
def test_what_starts_an_episode_is_held(action: Any, ticks: int) -> None:
    between = Between(ticks, LINEAR)
    for _ in range(2):
        assert all(np.array_equal(each, action) for each in sent(between, action))
        between.reset()
        action = -action


def test_parts_of_the_way_are_equal() -> None:
    between = Between(4, LINEAR)
    sent(between, np.float32([0, 8]))
    assert np.array_equal(sent(between, np.float32([4, 0])), [[1, 6], [2, 4], [3, 2], [4, 0]])


def test_a_line_begins_at_what_was_sent_last_where_ticks_are_left_out() -> None:
    between = Between(4, LINEAR)
    sent(between, np.float32([0]))
    assert np.array_equal(sent(between, np.float32([8]), range(2)), [[2], [4]])  # the rest of the period is missed
    assert np.array_equal(sent(between, np.float32([0])), [[3], [2], [1], [0]])


@pytest.mark.parametrize("which", [[1], (False, True), np.array([1])])
def test_rows_start_episodes_by_themselves(which: Any) -> None:
    between = Between(2, LINEAR)
    sent(between, np.float32([[0], [0]]))
    between.reset(which)
    assert np.array_equal(sent(between, np.float32([[4], [4]])), [[[2], [4]], [[4], [4]]])
    with pytest.raises(ValueError, match="rows: expected numbers from 0 to 1"):
        between.reset([2])


def test_what_a_robot_does_to_an_action_does_not_bend_the_line() -> None:
    between = Between(2, LINEAR)
    for first in sent(between, np.float32([0])):
        first += 100
    assert np.array_equal(sent(between, np.float32([4])), [[2], [4]])


def test_choices_are_held() -> None:
    assert sent(Between(3, HOLD, "int64"), np.int64(7)) == [7, 7, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "ticks: expected 1 to 10000 per step, got 0"),
        ((MOST_TICKS + 1,), "ticks: expected 1 to 10000 per step, got 10001"),
        ((2, "cubic"), "between: expected hold or linear, got 'cubic'"),
        ((2, LINEAR, "int64"), "between: linear is for actions of float32, got int64"),
    ],
)
def test_what_cannot_be_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Between(*arguments)
