"""What every target must do. A new target passes these tests unchanged: they run over the runtime registry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lram_export import Policy, load_policy
from lram_export.runtimes import RUNTIMES, Runtime
from tests.conftest import SLOW, ExportFunction, load_golden

TOLERANCE = 1e-4
STEPS = 12


@pytest.fixture(params=list(RUNTIMES))
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def policy(target: str, exported: ExportFunction) -> Iterator[Policy]:
    """One row, with an sLSTM block, reward feedback `none`."""
    with load_policy(exported("state_ms"), target, threads=1) as policy:
        yield policy


@pytest.fixture
def batch_policy(target: str, exported: ExportFunction) -> Iterator[Policy]:
    """Three rows, with an sLSTM block, reward feedback `observed`."""
    with load_policy(exported("state_ms", "observed", batch=3), target, threads=1) as policy:
        yield policy


def observations(steps: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((steps, *shape)).astype(np.float32)


def act_all(policy: Policy, inputs: np.ndarray, rewards: np.ndarray | None = None) -> np.ndarray:
    """Logits of every step; rewards[t] is what step t brought."""
    logits = []
    for step, observation in enumerate(inputs):
        policy.act(observation, None if rewards is None or step == 0 else rewards[step - 1])
        logits.append(policy.action_logits)
    return np.stack(logits)


class TestStepping:
    def test_shapes_and_types_are_those_of_the_specification(self, policy: Policy) -> None:
        action = policy.act(observations(1, 204)[0])
        assert action.shape == (8,) and action.dtype == np.float32
        assert policy.act(observations(1, 1, 204)[0]).shape == (1, 8)
        output = policy.runtime.step(observations(1, 1, 204)[0], *np.zeros((3, 1), np.float32))
        assert output.action.shape == (1, 8) and output.action_logits.shape == (1, 8, 274)

    def test_discrete_actions_from_images(self, target: str, exported: ExportFunction) -> None:
        image = load_golden("image_m").trace["observations"][0]
        with load_policy(exported("image_m"), target) as policy:
            action = policy.act(image)
            assert action.shape == () and action.dtype == np.int64
            assert policy.action_logits.shape == (1, 18)
            assert policy.act(image[None]).shape == (1,)

    def test_double_precision_observations_are_taken(self, policy: Policy) -> None:
        observation = observations(1, 204)[0]
        policy.act(observation)
        single = policy.action_logits
        policy.reset()
        policy.act(observation.astype(np.float64))
        np.testing.assert_array_equal(policy.action_logits, single)

    def test_actions_are_new_arrays(self, policy: Policy) -> None:
        first = policy.act(observations(1, 204)[0])
        before = first.copy()
        policy.act(observations(1, 204, seed=5)[0])
        np.testing.assert_array_equal(first, before)

    def test_the_state_advances(self, policy: Policy) -> None:
        before = policy.runtime.state()
        act_all(policy, observations(2, 204))
        after = policy.runtime.state()
        assert [n for n in before if np.array_equal(before[n], after[n])] == []

    def test_two_loads_give_the_same_bits(self, target: str, exported: ExportFunction) -> None:
        runs = []
        for _ in range(2):
            with load_policy(exported("state_ms"), target, threads=2) as policy:
                runs.append(act_all(policy, observations(STEPS, 204)))
        np.testing.assert_array_equal(runs[0], runs[1])


class TestReset:
    def test_after_a_reset_nothing_is_left_of_the_last_episode(self, policy: Policy) -> None:
        inputs = observations(STEPS, 204)
        first = act_all(policy, inputs)
        policy.reset()
        np.testing.assert_array_equal(act_all(policy, inputs), first)

    def test_a_state_holding_nan_cannot_survive_a_reset(self, policy: Policy, target: str) -> None:
        inputs = observations(STEPS, 204)
        first = act_all(policy, inputs)
        poison(policy.runtime, target)
        policy.reset()
        np.testing.assert_array_equal(act_all(policy, inputs), first)

    def test_single_rows_reset_and_the_others_go_on(self, batch_policy: Policy) -> None:
        inputs, rewards = observations(STEPS, 3, 204), observations(STEPS, 3, seed=1)
        undisturbed = act_all(batch_policy, inputs, rewards)
        batch_policy.reset()
        half = STEPS // 2
        act_all(batch_policy, inputs[:half], rewards)
        batch_policy.reset(rows=[1])
        logits = []
        for step in range(half, STEPS):
            # row 1 sees its episode from the start again; rewards are those of its steps
            mixed, mixed_rewards = inputs[step].copy(), rewards[step - 1].copy()
            mixed[1], mixed_rewards[1] = inputs[step - half, 1], rewards[step - half - 1, 1]
            batch_policy.act(mixed, mixed_rewards)
            logits.append(batch_policy.action_logits)
        again = np.stack(logits)
        np.testing.assert_allclose(again[:, [0, 2]], undisturbed[half:, [0, 2]], atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(again[:, 1], undisturbed[: STEPS - half, 1], atol=TOLERANCE, rtol=0)

    def test_a_reset_takes_a_new_target_return(self, policy: Policy) -> None:
        policy.reset(target_return=2.5)
        assert policy.return_to_go.tolist() == [2.5]
        policy.reset()
        assert policy.return_to_go.tolist() == [2.5]

    @pytest.mark.parametrize("wrong", ["x", float("nan"), [1.0, 2.0], 1e300])
    def test_a_wrong_target_return_is_named(self, policy: Policy, wrong: object) -> None:
        with pytest.raises(ValueError, match="target_return: expected"):
            policy.reset(target_return=wrong)  # type: ignore[arg-type]
        assert policy.return_to_go.tolist() == [5.0]

    def test_a_row_that_does_not_exist_is_refused(self, batch_policy: Policy) -> None:
        with pytest.raises(ValueError, match=r"rows: expected numbers from 0 to 2 or a mask of 3 booleans, got 3"):
            batch_policy.reset(rows=[3])


class TestBatch:
    def test_rows_are_independent(self, batch_policy: Policy, target: str, exported: ExportFunction) -> None:
        inputs, rewards = observations(STEPS, 3, 204), observations(STEPS, 3, seed=1)
        batch_policy.reset(target_return=[1.0, 5.0, 9.0])
        together = act_all(batch_policy, inputs, rewards)
        with load_policy(exported("state_ms", "observed"), target) as single:
            for row, target_return in enumerate((1.0, 5.0, 9.0)):
                single.reset(target_return=target_return)
                alone = act_all(single, inputs[:, row], rewards[:, row])
                np.testing.assert_allclose(together[:, row], alone[:, 0], atol=TOLERANCE, rtol=0)

    def test_a_nan_in_one_row_of_the_input_stops_the_step(self, batch_policy: Policy) -> None:
        inputs = observations(1, 3, 204)[0]
        inputs[2, 7] = np.nan
        with pytest.raises(ValueError, match=r"observation: expected finite values, got nan at \[2, 7\]"):
            batch_policy.act(inputs)


class TestReturnToGo:
    def test_rewards_lower_it_from_the_second_step_on(self, policy: Policy) -> None:
        policy.reset(target_return=5.0)
        inputs = observations(3, 204)
        policy.act(inputs[0], 100.0)  # nothing came before the first step
        assert policy.return_to_go.tolist() == [5.0]
        policy.act(inputs[1], 1.5)
        assert policy.return_to_go.tolist() == [3.5]
        policy.act(inputs[2])
        assert policy.return_to_go.tolist() == [3.5]

    def test_observed_feedback_needs_the_reward(self, batch_policy: Policy) -> None:
        inputs = observations(2, 3, 204)
        batch_policy.act(inputs[0])
        with pytest.raises(ValueError, match="reward: required after the first step"):
            batch_policy.act(inputs[1])
        batch_policy.act(inputs[1], np.zeros(3))

    def test_the_reward_token_carries_it_only_with_observed_feedback(
        self, target: str, exported: ExportFunction
    ) -> None:
        inputs = observations(2, 204)
        logits = {}
        for feedback in ("none", "observed"):
            with load_policy(exported("state_ms", feedback), target) as policy:
                logits[feedback] = act_all(policy, inputs, np.array([1.0, 0.0]))
        np.testing.assert_array_equal(logits["none"][0], logits["observed"][0])
        assert np.abs(logits["none"][1] - logits["observed"][1]).max() > 1e-3


class TestState:
    def test_a_snapshot_continues_the_run(self, policy: Policy) -> None:
        inputs = observations(STEPS, 204)
        act_all(policy, inputs[:5], np.ones(5))
        snapshot = policy.state()
        rest = act_all(policy, inputs[5:])
        policy.reset()
        policy.act(inputs[0])
        policy.load_state(snapshot)
        np.testing.assert_array_equal(act_all(policy, inputs[5:]), rest)

    def test_a_snapshot_is_a_copy(self, policy: Policy) -> None:
        act_all(policy, observations(2, 204))
        snapshot = policy.state()
        before = {n: a.copy() for n, a in snapshot.items()}
        act_all(policy, observations(2, 204))
        for name, array in before.items():
            np.testing.assert_array_equal(snapshot[name], array)

    def test_names_are_the_same_on_every_target(self, policy: Policy) -> None:
        own = {t.name: t.shape for t in policy.spec.states}
        assert {n: a.shape for n, a in policy.runtime.state().items()} == own
        assert {"state.0.C", "state.0.m", "state.1.y", "state.1.conv"} <= set(own)

    @pytest.mark.parametrize(
        ("name", "other"),
        [
            *(("state_ms", other) for other in RUNTIMES),
            *(pytest.param("image_m", other, marks=SLOW if number else ()) for number, other in enumerate(RUNTIMES)),
        ],
    )
    def test_a_run_moves_between_targets(self, name: str, target: str, other: str, exported: ExportFunction) -> None:
        golden = load_golden(name)
        inputs, rewards = golden.trace["observations"][:STEPS], golden.trace["rewards"][:STEPS]
        with load_policy(exported(name), target) as one, load_policy(exported(name), other) as two:
            stayed = act_all(two, inputs, rewards)
            act_all(one, inputs[:5], rewards)
            two.load_state(one.state())
            for step in range(5, STEPS):
                two.act(inputs[step], rewards[step - 1])
                assert np.abs(two.action_logits - stayed[step]).max() <= TOLERANCE
            one.load_state(two.state())  # and back
            two.act(inputs[0], rewards[0])
            one.act(inputs[0], rewards[0])
            assert np.abs(one.action_logits - two.action_logits).max() <= TOLERANCE

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.pop("state.0.C"), "state.0.C: missing"),
            (lambda s: s.update({"state.0.m": s["state.0.m"][:, :1]}), "state.0.m: expected float32 of shape"),
            (lambda s: s.update({"state.0.n": s["state.0.n"].astype(np.float64)}), "state.0.n: .*got float64"),
            (lambda s: s["state.1.c"].fill(np.nan), "state.1.c: expected finite values, got nan"),
            (lambda s: s.update({"state.9.C": s["state.0.C"]}), "state.9.C: not part"),
            (lambda s: s.pop("return_to_go"), "return_to_go: missing from the state"),
            (lambda s: s["is_first"].fill(0.5), "is_first: expected 0 or 1"),
            (lambda s: s.update(is_first=np.array(["no"])), "is_first: expected float32 of shape"),
            (lambda s: s.update(weights=s["weights"][::-1]), "weights: the state is of other weights, .*force=True"),
            (lambda s: s.update(weights=s["weights"][1:]), r"weights: expected uint8 of shape \(32,\)"),
            (lambda s: s.update(precision=np.array("int8")), r"precision: expected uint8 of shape \(N,\)"),
        ],
    )
    def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(
        self, policy: Policy, change: object, message: str
    ) -> None:
        act_all(policy, observations(2, 204))
        before = policy.state()
        wrong = {n: a.copy() + 1 if a.dtype == np.float32 else a for n, a in before.items()}
        change(wrong)  # type: ignore[operator]
        with pytest.raises(ValueError, match=message):
            policy.load_state(wrong)
        after = policy.state()
        for name, array in before.items():
            np.testing.assert_array_equal(after[name], array)


GOOD = np.zeros(204, np.float32)
BAD_INPUTS = [
    (GOOD[:39], None, r"observation: expected float32 of shape \(204,\) or \(1, 204\), got float32 of shape \(39,\)"),
    (GOOD.astype(str), None, "observation: expected float32 .* got <U"),
    (GOOD.astype(complex), None, "observation: expected float32 .* got complex128"),
    ([0.0, *[None] * 203], None, r"observation: expected numbers, got None at \[1\]"),
    ([[0.0], [0.0, 1.0]], None, "observation: expected an array, got a list whose parts differ in length"),
    ([*[0] * 203, 10**400], None, r"observation: expected numbers, got 10+\.\.\. \(int\) at \[203\]"),
    ([*[0] * 203, 10**39], None, r"observation: expected finite values of magnitude up to .*, got 1e\+39 at \[203\]"),
    (np.full(204, np.nan, np.float32), None, r"observation: expected finite values, got nan at \[0\]"),
    (np.full(204, np.inf), None, "observation: expected finite values, got inf"),
    (np.full(204, 1e39), None, r"observation: expected finite values of magnitude up to .*, got 1e\+39 at \[0\]"),
    (np.zeros((2, 204), np.float32), None, r"got float32 of shape \(2, 204\)"),
    (GOOD, float("nan"), "reward: expected finite values"),
    (GOOD, np.zeros(2), r"reward: expected shape \(1,\), got shape \(2,\)"),
    (GOOD, "much", "reward: expected numbers"),
    (GOOD, 1e300, r"reward: expected finite values of magnitude up to .*, got 1e\+300"),
]


class TestBadInput:
    @pytest.mark.parametrize(("observation", "reward", "message"), BAD_INPUTS)
    def test_it_is_named_and_changes_nothing(
        self, policy: Policy, observation: object, reward: object, message: str
    ) -> None:
        act_all(policy, observations(3, 204), np.ones(3))
        before = policy.state()
        with pytest.raises(ValueError, match=message):
            policy.act(observation, reward)  # type: ignore[arg-type]
        after = policy.state()
        for name, array in before.items():
            np.testing.assert_array_equal(after[name], array)

    def test_images_must_be_uint8(self, target: str, exported: ExportFunction) -> None:
        with load_policy(exported("image_m"), target) as policy:
            with pytest.raises(ValueError, match=r"observation: expected uint8 .* got float32"):
                policy.act(np.zeros((3, 64, 64), np.float32))
            with pytest.raises(ValueError, match=r"got uint8 of shape \(64, 64, 3\)"):
                policy.act(np.zeros((64, 64, 3), np.uint8))

    def test_the_runtime_checks_its_own_inputs(self, policy: Policy) -> None:
        observation, zero = np.zeros((1, 204), np.float32), np.zeros(1, np.float32)
        before = policy.runtime.state()
        for inputs, message in (
            ((observation, zero, zero, zero + 0.5), "is_first: expected 0 or 1"),
            ((observation, zero * np.nan, zero, zero), "return_to_go: expected finite values"),
            ((observation, zero, np.zeros(2, np.float32), zero), "reward: expected float32 of shape"),
            ((observation.astype(np.float64), zero, zero, zero), "observation: .*got float64"),
        ):
            with pytest.raises(ValueError, match=message):
                policy.runtime.step(*inputs)
        after = policy.runtime.state()
        assert all(np.array_equal(before[n], after[n]) for n in before)


class TestClose:
    def test_a_closed_policy_says_so(self, target: str, exported: ExportFunction) -> None:
        policy = load_policy(exported("state_ms"), target)
        policy.close()
        for use in (policy.reset, policy.state, lambda: policy.act(GOOD), lambda: policy.load_state({})):
            with pytest.raises(RuntimeError, match="the policy is closed"):
                use()

    def test_it_may_be_called_twice(self, target: str, exported: ExportFunction) -> None:
        policy = load_policy(exported("state_ms"), target)
        policy.close()
        policy.close()


def poison(runtime: Runtime, target: str) -> None:
    """Put NaN into the state, which no public call allows: reach for the buffers each runtime has."""
    for attribute in ("_state", "_states"):
        held = getattr(runtime, attribute, None)
        for state in held if isinstance(held, tuple) else [held] if held else []:
            for array in state.values():
                fill_with_nan(array)
    for variable in getattr(runtime, "_variables", {}).values():
        variable.state.data[...] = float("nan")
    assert np.isnan(runtime.state()["state.0.C"]).all(), f"{target}: poison() does not know where it keeps its state"


def fill_with_nan(array: Any) -> None:
    """An array of numpy's or torch's, one of a GPU's memory, or one of TVM's there."""
    upload = getattr(array, "upload", None) or getattr(array, "copyfrom", None)
    if upload is None:
        array[...] = float("nan")
    else:
        upload(np.full(tuple(array.shape), np.nan, np.float32))
