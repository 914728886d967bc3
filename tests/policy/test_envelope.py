"""What an action is held to before the robot gets it: how often limits clamped it, and the safety that is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lram_export import ExportOptions, StepPolicy, export_bundle, load_policy
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.envelope import Envelope
from lram_export.policy import Policy
from lram_export.spec.interface import FieldInterface, Interface, Limits, Safety, Scaling
from lram_export.spec.tasks import resolve_task
from lram_export.spec.tensors import UNCLAMPED, StepSpec, TensorSpec
from tests.conftest import load_golden, succeed

Floats = NDArray[np.float32]
LIMITS = Limits((-1.0, -2.0), (1.0, 2.0))
SAFETY = Safety(most_change=(0.25, 0.5), most_clamps=2, safe_action=(0.0, -1.0))


def interface(safety: Safety | None, limits: Limits | None = LIMITS) -> Interface:
    return Interface(action={"action": FieldInterface(limits=limits, safety=safety)})


def spec(rows: int) -> StepSpec:
    inputs = (TensorSpec("observation", (rows, 2), "float32"), TensorSpec("is_first", (rows,), "float32"))
    outputs = tuple(TensorSpec(name, (rows, 2), "float32") for name in ("action", "action" + UNCLAMPED))
    return StepSpec(rows, inputs, outputs, ())


def outputs(wanted: Any) -> dict[str, Floats]:
    """What a graph with the limits gives where its network wants something: (B, 2)."""
    before = np.asarray(wanted, np.float32)
    low, high = np.float32(LIMITS.low), np.float32(LIMITS.high)
    return {"action": np.clip(before, low, high), "action" + UNCLAMPED: before}


def held(envelope: Envelope, wanted: Any) -> Floats:
    found = outputs(wanted)
    envelope.apply(found)
    return found["action"]


class Robot:
    """The rules once more, for one row and number by number."""

    def __init__(self, safety: Safety) -> None:
        self.safety, self.previous, self.clamps, self.stopped = safety, None, 0, False
        self.clamped, self.slowed, self.stops = [0, 0], [0, 0], 0

    def start(self) -> None:
        self.previous, self.clamps, self.stopped = None, 0, False

    def gets(self, wanted: Floats) -> list[np.float32]:
        given, beyond = [], False
        for i, value in enumerate(wanted):
            bounded = min(max(value, np.float32(LIMITS.low[i])), np.float32(LIMITS.high[i]))  # type: ignore[index]
            if bounded != value:
                self.clamped[i] += 1
                beyond = True
            given.append(bounded)
        self.clamps = self.clamps + 1 if beyond else 0
        if self.safety.most_clamps is not None and self.clamps > self.safety.most_clamps:
            self.stopped = True
        if self.stopped:
            self.stops += 1
            given = list(np.broadcast_to(np.float32(self.safety.safe_action), 2))
        if self.safety.most_change is not None and self.previous is not None:
            for i, change in enumerate(np.broadcast_to(np.float32(self.safety.most_change), 2)):
                near = min(max(given[i], self.previous[i] - change), self.previous[i] + change)
                self.slowed[i] += int(near != given[i])
                given[i] = near
        self.previous = given
        return given


wishes = st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4)
ticks = st.lists(st.tuples(wishes, st.lists(st.integers(0, 1), max_size=1)), min_size=1, max_size=12)
safeties = st.sampled_from(
    (SAFETY, Safety(most_change=0.5), Safety(most_clamps=1, safe_action=0.5), Safety(safe_action=0.0))
)


class TestEnvelope:
    @settings(max_examples=200, deadline=None)
    @given(ticks, safeties)
    def test_every_row_gets_what_the_rules_say_whatever_the_others_do(
        self, run: list[tuple[list[float], list[int]]], safety: Safety
    ) -> None:
        envelope, robots = Envelope(spec(2), interface(safety)), [Robot(safety), Robot(safety)]
        for wanted, starting in run:
            envelope.start(starting)
            for row in starting:
                robots[row].start()
            rows = np.float32(wanted).reshape(2, 2)
            np.testing.assert_array_equal(held(envelope, rows), [r.gets(w) for r, w in zip(robots, rows, strict=True)])
        counts = envelope.counts()["action"]
        assert counts.clamped.tolist() == [robot.clamped for robot in robots]
        assert counts.slowed.tolist() == [robot.slowed for robot in robots]
        assert counts.stopped.tolist() == [robot.stops for robot in robots]
        assert counts.consecutive.tolist() == [robot.clamps for robot in robots]

    @settings(max_examples=100, deadline=None)
    @given(ticks)
    def test_no_action_leaves_the_limits_or_changes_by_more_than_it_may(
        self, run: list[tuple[list[float], list[int]]]
    ) -> None:
        envelope, before = Envelope(spec(2), interface(SAFETY)), None
        for wanted, _ in run:
            now = held(envelope, np.float32(wanted).reshape(2, 2))
            assert (now >= np.float32(LIMITS.low)).all()
            assert (now <= np.float32(LIMITS.high)).all()
            if before is not None:
                assert (np.abs(now - before) <= np.float32(SAFETY.most_change) * np.float32(1 + 1e-6)).all()
            before = now

    def test_a_row_that_was_clamped_too_often_goes_to_the_safe_action_and_stays_there(self) -> None:
        envelope = Envelope(spec(1), interface(SAFETY))
        given = [held(envelope, [[9.0, 0.0]])[0].tolist() for _ in range(3)]
        assert given == [[1, 0], [1, 0], [0.75, -0.5]]  # the third clamp in a row is one too many
        given = [held(envelope, [[0.5, 0.5]])[0].tolist() for _ in range(4)]
        assert given == [[0.5, -1], [0.25, -1], [0, -1], [0, -1]]
        envelope.start([0])
        assert held(envelope, [[0.5, 0.5]])[0].tolist() == [0.5, 0.5]
        assert envelope.counts()["action"].stopped.tolist() == [5]

    def test_a_tick_within_the_limits_begins_the_count_of_clamps_anew(self) -> None:
        envelope = Envelope(spec(1), interface(SAFETY))
        for wanted in ([9.0, 0.0], [9.0, 0.0], [1.0, 0.0], [9.0, 0.0], [9.0, 0.0]):
            held(envelope, [wanted])
        counts = envelope.counts()["action"]
        assert (counts.clamped.tolist(), counts.stopped.tolist(), counts.consecutive.tolist()) == ([[4, 0]], [0], [2])

    def test_the_first_action_is_free_unless_it_is_known_what_the_robot_holds(self) -> None:
        envelope = Envelope(spec(2), interface(SAFETY))
        envelope.hold([0.0, 0.0], rows=[1])
        assert held(envelope, [[1.0, 1.0], [1.0, 1.0]]).tolist() == [[1, 1], [0.25, 0.5]]

    @pytest.mark.parametrize(
        ("action", "message"),
        [
            ([0.0], r"action: expected numbers of shape \(2,\) or \(2, 2\), got float64 of shape \(1,\)"),
            ([np.nan, 0.0], r"action: expected finite values, got nan"),
            ([[0.0, 0.0], [0.0]], r"action: expected numbers .* got lists of different lengths"),
            (["a", "b"], r"action: expected numbers"),
            ({"other": [0.0, 0.0]}, "other: expected one of action"),
        ],
    )
    def test_what_no_robot_can_hold_is_refused(self, action: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Envelope(spec(2), interface(SAFETY)).hold(action, [0, 1])

    def test_counts_are_copies(self) -> None:
        envelope = Envelope(spec(1), interface(None))
        envelope.counts()["action"].clamped[:] = 7
        held(envelope, [[9.0, 0.0]])
        assert envelope.counts()["action"].clamped.tolist() == [[1, 0]]

    def test_without_limits_and_safety_there_is_nothing_to_do(self) -> None:
        envelope = Envelope(spec(1), Interface())
        assert not envelope
        assert envelope.counts() == {}
        with pytest.raises(ValueError, match="its interface says no limits and no safety"):
            envelope.hold([0.0, 0.0], [0])


class Follower(torch.nn.Module):
    """Wants what it observes, and a sum of all that it saw."""

    def forward(self, observation: Any, total: Any) -> Any:
        total = total + observation
        return observation + 0.0, total


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("envelope")
    for name, safety in (("held", SAFETY), ("free", None)):
        policy = StepPolicy(Follower(), observation=2, action=2, state={"total": 2}, interface=interface(safety))
        export_bundle(
            policy, None, folder / name, ExportOptions(("pytorch", "native"), report=False, reference_steps=20)
        )
    return {name: folder / name for name in ("held", "free")}


@pytest.fixture(params=["pytorch", "native"])
def policies(request: pytest.FixtureRequest, bundles: dict[str, Path]) -> Iterator[tuple[Policy, Policy]]:
    """(with a safety, without), of two rows."""
    with (
        load_policy(bundles["held"], request.param, batch=2) as safe,
        load_policy(bundles["free"], request.param, batch=2) as free,
    ):
        yield safe, free


class TestPolicy:
    def test_the_action_is_held_back_and_the_state_knows_nothing_of_it(self, policies: tuple[Policy, Policy]) -> None:
        safe, free = policies
        rules = [Robot(SAFETY), Robot(SAFETY)]
        rng = np.random.default_rng(5)
        for step in range(60):
            seen = rng.normal(0, 2, (2, 2)).astype(np.float32)
            first = rng.random(2) < 0.1
            for row in np.flatnonzero(first):
                rules[row].start()
            action, _ = safe.act(seen, first=first), free.act(seen, first=first)
            np.testing.assert_array_equal(action, [r.gets(s) for r, s in zip(rules, seen, strict=True)], str(step))
            np.testing.assert_array_equal(safe.outputs["action_unclamped"], free.outputs["action_unclamped"])
            np.testing.assert_array_equal(safe.outputs["action"], action)
            for name, values in safe.state().items():
                if name.startswith("state."):
                    np.testing.assert_array_equal(values, free.state()[name])
        assert safe.counts()["action"].clamped.tolist() == [rule.clamped for rule in rules]
        np.testing.assert_array_equal(free.counts()["action"].clamped, safe.counts()["action"].clamped)
        assert (free.counts()["action"].slowed == 0).all()

    def test_a_refused_observation_counts_nothing(self, policies: tuple[Policy, Policy]) -> None:
        safe, _ = policies
        safe.act([[9.0, 0.0], [0.0, 0.0]])
        with pytest.raises(ValueError, match="observation"):
            safe.act([[9.0, np.nan], [0.0, 0.0]], first=[True, True])
        safe.act([[9.0, 0.0], [0.0, 0.0]])
        counts = safe.counts()["action"]
        assert (counts.clamped.tolist(), counts.consecutive.tolist()) == ([[2, 0], [0, 0]], [2, 0])

    def test_priming_and_resets_of_other_rows_leave_a_row_where_it_is(self, policies: tuple[Policy, Policy]) -> None:
        safe, _ = policies
        safe.act([[0.0, 0.0], [0.0, 0.0]])
        safe.prime(np.full((3, 2, 2), 9.0))
        safe.reset(rows=[1])
        assert safe.act([[1.0, 1.0], [1.0, 1.0]]).tolist() == [[0.25, 0.5], [1, 1]]

    def test_what_the_robot_holds_can_be_said(self, policies: tuple[Policy, Policy]) -> None:
        safe, _ = policies
        safe.reset()
        safe.hold([0.5, 0.0], rows=[False, True])
        assert safe.act([[1.0, 1.0], [1.0, 1.0]]).tolist() == [[1, 1], [0.75, 0.5]]

    def test_what_the_robot_holds_is_of_the_episode_that_the_next_observation_starts(
        self, policies: tuple[Policy, Policy]
    ) -> None:
        safe, _ = policies
        safe.act([[0.0, 0.0], [0.0, 0.0]])
        safe.hold([0.5, 0.0], rows=[1])
        assert safe.act([[1.0, 1.0], [1.0, 1.0]], first=[True, True]).tolist() == [[1, 1], [0.75, 0.5]]
        assert safe.act([[0.0, 0.0], [0.0, 0.0]], first=[True, True]).tolist() == [[0, 0], [0, 0]]
        safe.hold([0.5, 0.0])
        safe.reset()
        assert safe.act([[1.0, 1.0], [1.0, 1.0]]).tolist() == [[1, 1], [1, 1]]

    def test_a_loaded_state_is_one_of_a_robot_that_is_nobody_knows_where(self, policies: tuple[Policy, Policy]) -> None:
        safe, _ = policies
        state = safe.state()
        safe.act([[0.0, 0.0], [0.0, 0.0]])
        safe.load_state(state)
        assert safe.act([[1.0, 1.0], [1.0, 1.0]]).tolist() == [[1, 1], [1, 1]]

    def test_a_swap_leaves_the_robot_where_it_is(self, bundles: dict[str, Path]) -> None:
        with load_policy(bundles["held"], "pytorch") as policy:
            for _ in range(3):
                policy.act([9.0, 0.0])
            before = policy.counts()["action"]
            policy.swap(bundles["held"], "native")
            after = policy.counts()["action"]
            assert after.clamped.tolist() == before.clamped.tolist() == [[3, 0]]
            assert policy.act([0.5, 0.5]).tolist() == [0.5, -1]  # stopped, and slowed from 0.75


def test_actions_that_are_chosen_from_bins_are_counted(tmp_path: Path) -> None:
    golden = load_golden("state_m")
    said = FieldInterface(scaling=Scaling(-2.0, 0.25), limits=Limits((-0.6, -9, -9, -9), 0.5))
    export_bundle(
        load_checkpoint(golden.checkpoint),
        resolve_task("metaworld/reach-v2"),
        tmp_path / "arm.lram",
        ExportOptions(("pytorch", "native"), report=False, interface=Interface(action={"action": said})),
    )
    for target in ("pytorch", "native"):
        with load_policy(tmp_path / "arm.lram", target) as policy:
            rng, expected = np.random.default_rng(0), np.zeros(4, np.int64)
            for _ in range(100):
                action = policy.act(rng.normal(0, 3, 39))
                token = policy.action_logits[0].argmax(-1)
                before = -2 * (np.maximum(token - 18, 0) * 2 / 256 - 1) + 0.25
                beyond = (before > 0.5) | (before < [-0.6, -9, -9, -9])
                np.testing.assert_array_equal(np.isin(action, np.float32([-0.6, 0.5])) >= beyond, True)
                expected += beyond
            assert policy.counts()["action"].clamped.tolist() == [expected.tolist()]
            assert 0 < expected.sum() < 400


def test_run_says_what_was_held_back(bundles: dict[str, Path], tmp_path: Path) -> None:
    seen, actions = tmp_path / "seen.npz", tmp_path / "actions.npz"
    np.savez(seen, observations=np.float32([[0, 0], [9, 0], [9, 0], [9, 9], [9, 0]]))
    text = succeed("run", bundles["held"], "--observations", seen, "-o", actions).stderr
    assert "action: clamped: 0 4, 1 1; slowed: 0 3, 1 1; stopped for 2 steps" in text
    with np.load(actions) as file:
        assert file["actions"][:, 0].tolist() == [0, 0.25, 0.5, 0.25, 0]
    document = json.loads(
        succeed("run", bundles["free"], "--observations", seen, "-o", actions, "--force", "--json", "-q").stdout
    )
    assert document["counts"] == {
        "action": {"clamped": [[4, 1]], "slowed": [[0, 0]], "stopped": [0], "consecutive": [4]}
    }
