"""What computes for a fleet: a row is what it is alone, whatever becomes of the others in the same step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lram_export import Bundle, load_policy
from lram_export.errors import BundleError, LramError, StepError
from lram_export.policy import Policy
from lram_export.serving.batching import Batcher
from lram_export.serving.rows import Rows, open_rows
from lram_export.serving.seats import Seat


def seats(bundle: Path, robots: int) -> tuple[Rows, Batcher, list[Policy]]:
    opened = Bundle.open(bundle)
    rows = open_rows(opened, "native", robots, threads=1, spin=False)
    batcher = Batcher(rows)
    manifest = opened.manifest
    return rows, batcher, [Policy(Seat(batcher, row, {}), manifest.task) for row in range(robots)]


@pytest.fixture
def fleet(small: Path) -> Iterator[tuple[Rows, list[Policy]]]:
    rows, batcher, policies = seats(small, 3)
    yield rows, policies
    batcher.close()
    rows.close()


def inputs_of(policy: Policy, observation: Any) -> tuple[Any, ...]:
    """What a step of a row takes that goes on in an episode."""
    given = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in policy.spec.inputs}
    given["observation"][...] = observation
    return tuple(given.values())


def test_rows_in_any_order_are_what_they_are_alone(fleet: tuple[Rows, list[Policy]], small: Path) -> None:
    rows, policies = fleet
    observations = np.random.default_rng(0).standard_normal((6, 3, 204)).astype(np.float32)
    with load_policy(small, "native", threads=1, batch=1) as own:
        for row in (2, 0, 1):
            rows.reset(row)
        for chosen in ((2, 0), (1,), (0, 1, 2), (2, 1)):
            rows.step(chosen, [inputs_of(policies[0], observations[len(chosen), row]) for row in chosen])
        own.runtime.reset()
        for count in (2, 3, 2):  # the steps that row 2 made
            own.runtime.step(*inputs_of(own, observations[count, 2]))
        found, expected = rows.state(2), own.runtime.state()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


def test_a_state_that_somebody_made_up_is_lost_alone(fleet: tuple[Rows, list[Policy]], small: Path) -> None:
    rows, policies = fleet
    observation = np.random.default_rng(1).standard_normal(204).astype(np.float32)
    for policy in policies:
        policy.act(observation)
    wild = {name: np.full_like(values, 1e17) for name, values in rows.state(1).items()}
    rows.load_state(1, wild)
    outcomes = rows.step([0, 1, 2], [inputs_of(policies[0], observation)] * 3)
    assert isinstance(outcomes[1], StepError) and "row 0" in str(outcomes[1])
    first, third = outcomes[0], outcomes[2]
    assert isinstance(first, tuple) and isinstance(third, tuple)
    for values, same in zip(first, third, strict=True):
        np.testing.assert_array_equal(values, same)
    (again,) = rows.step([1], [inputs_of(policies[0], observation)])
    assert isinstance(again, StepError) and "row 0 was lost" in str(again)
    with pytest.raises(StepError, match="row 0 was lost"):
        rows.state(1)
    with load_policy(small, "native", threads=1) as own:
        own.act(observation)
        np.testing.assert_array_equal(own.runtime.step(*inputs_of(own, observation)).action, first[0])
        policies[1].reset()
        own.reset()
        np.testing.assert_array_equal(policies[1].act(observation), own.act(observation))


def test_an_episode_that_is_refused_has_not_begun(fleet: tuple[Rows, list[Policy]]) -> None:
    rows, policies = fleet
    observation = np.ones(204, np.float32)
    for policy in policies:
        policy.act(observation)
    rows.load_state(1, {name: np.full_like(values, 1e17) for name, values in rows.state(1).items()})
    refused = inputs_of(policies[0], np.full(204, 1e30))
    refused[-1][0] = 1.0
    (outcome,) = rows.step([1], [refused])
    assert isinstance(outcome, StepError) and "nothing has changed" in str(outcome)
    outcomes = rows.step([0, 1, 2], [inputs_of(policies[0], observation)] * 3)
    assert isinstance(outcomes[1], StepError)
    assert not isinstance(outcomes[0], Exception) and not isinstance(outcomes[2], Exception)


def test_rows_of_a_step_that_went_wrong_for_all_are_refused_until_their_next_episode(
    fleet: tuple[Rows, list[Policy]],
) -> None:
    """Nobody can bring that about from outside; if it comes about, no robot gets an action that is none."""
    rows, policies = fleet
    observation = np.ones(204, np.float32)
    for policy in policies:
        policy.act(observation)
    rows._state.memory()[...] = np.nan  # type: ignore[attr-defined]
    outcomes = rows.step([0, 2], [inputs_of(policies[0], observation)] * 2)
    assert all(isinstance(outcome, StepError) for outcome in outcomes)
    for policy in (policies[0], policies[2]):
        with pytest.raises(StepError, match="row 0 was lost"):
            policy.act(observation, 1.0)
        assert np.isfinite(policy.act(observation, first=True)).all()


def test_what_overflows_in_a_module_of_ones_own_is_refused_alone(held: Path) -> None:
    rows, batcher, policies = seats(held, 3)
    huge = np.float32([3e38, 0.0])
    for row, seen in enumerate((np.ones(2), huge, np.ones(2))):
        policies[row].act(seen)
    ordinary = inputs_of(policies[0], np.ones(2))
    outcomes = rows.step([0, 1, 2], [ordinary, inputs_of(policies[0], huge), ordinary])
    assert isinstance(outcomes[1], StepError) and "nothing has changed" in str(outcomes[1])
    assert not any(isinstance(outcomes[row], Exception) for row in (0, 2))
    totals = [rows.state(row)["state.total"][0, 0] for row in range(3)]
    assert totals == [2.0, np.float32(3e38), 2.0]
    batcher.close()
    rows.close()


class _Broken:
    """Rows with a defect."""

    together = True

    def __init__(self, rows: Rows) -> None:
        self.spec, self.size = rows.spec, rows.size

    def step(self, rows: object, inputs: object) -> None:
        raise RuntimeError("a defect")

    def settle(self) -> None: ...


def test_a_defect_hangs_nobody(fleet: tuple[Rows, list[Policy]]) -> None:
    batcher = Batcher(_Broken(fleet[0]))  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="the step failed: RuntimeError: a defect"):
        batcher.step(0, ())
    with pytest.raises(ZeroDivisionError):
        batcher.do(lambda: 1 / 0)
    assert batcher.do(lambda: 7) == 7
    batcher.close()
    with pytest.raises(LramError, match="the server is being stopped"):
        batcher.step(0, ())
