"""What the step API says of wrong use, on every target alike: junk, forks, threads, a policy that is closed."""

from __future__ import annotations

import os
import pickle
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lram_export import Policy, load_policy
from lram_export.errors import LramError, StepError, UsageError
from lram_export.runtimes import RUNTIMES
from tests.conftest import ExportFunction
from tests.contract.test_conformance import poison

BATCH = 3
OBSERVATION = np.zeros((BATCH, 204), np.float32)


@pytest.fixture(params=list(RUNTIMES))
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def policy(target: str, exported: ExportFunction) -> Iterator[Policy]:
    """Three rows, with an sLSTM block, reward feedback `observed`."""
    with load_policy(exported("state_ms", "observed", batch=BATCH), target, threads=1) as policy:
        yield policy


def fresh_rows(policy: Policy) -> list[int]:
    """Rows whose next step starts an episode."""
    return [int(row) for row in np.flatnonzero(policy.state()["is_first"])]


def step(policy: Policy) -> None:
    policy.act(OBSERVATION, np.zeros(BATCH))


class TestRows:
    @pytest.mark.parametrize(
        ("rows", "expected"),
        [
            ([False, True, True], [1, 2]),
            (np.array([False, False, False]), []),
            (np.array([True, False, False]), [0]),
            ((1, 1, 2), [1, 2]),
            (range(2), [0, 1]),
            (np.array([2], np.uint8), [2]),
            ([], []),
            ({2}, [2]),
            ({0: "", 2: ""}.keys(), [0, 2]),
            (None, [0, 1, 2]),
        ],
    )
    def test_a_mask_is_a_mask_and_numbers_are_numbers(self, policy: Policy, rows: Any, expected: list[int]) -> None:
        step(policy)
        policy.reset(rows)
        assert fresh_rows(policy) == expected
        initial = policy.spec.states[0]
        values = policy.state()[initial.name].reshape(BATCH, -1)
        assert [row for row in range(BATCH) if (values[row] == initial.initial).all()] == expected

    def test_the_rows_of_a_mask_get_their_targets(self, policy: Policy) -> None:
        policy.reset(rows=[True, False, True], target_return=[1.0, 3.0])
        assert policy.return_to_go.tolist() == [1.0, 5.0, 3.0]

    @pytest.mark.parametrize(
        ("rows", "got"),
        [
            ([True, False], "2 booleans"),
            (np.ones(4, bool), "4 booleans"),
            ([1.0], "1.0"),
            (np.array([1.0]), "float64 of shape (1,)"),
            ([[0], [1]], "[0]"),
            (np.zeros((1, 3), bool), "bool of shape (1, 3)"),
            ("012", "'012'"),
            (1, "1"),
            ([True, 0, 1], "True"),
            ([-1], "-1"),
            ([3], "3"),
            ([None], "None"),
            ({0: 1}, "{0: 1}"),
        ],
    )
    def test_anything_else_is_named_and_resets_nothing(self, policy: Policy, rows: Any, got: str) -> None:
        step(policy)
        message = f"rows: expected numbers from 0 to 2 or a mask of 3 booleans, got {got}"
        for reset in (policy.reset, policy.runtime.reset):
            with pytest.raises(ValueError, match=re.escape(message)):
                reset(rows)
        assert fresh_rows(policy) == []


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.binary()
    | st.sampled_from([object(), int, np.float32("nan"), np.array("x"), np.zeros(2, complex), 10**400, np.str_("1")]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2) | st.tuples(inner)
    ),
    max_leaves=4,
)


class TestJunk:
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(junk=JUNK)
    def test_every_argument_of_every_method_is_checked(self, policy: Policy, junk: Any) -> None:
        policy.reset()
        zero = np.zeros(BATCH, np.float32)
        inputs = [OBSERVATION, zero, zero, zero]
        calls: list[tuple[str, Callable[[], object]]] = [
            ("rows", lambda: policy.reset(junk)),
            ("rows", lambda: policy.runtime.reset(junk)),
            ("target_return", lambda: policy.reset(target_return=junk)),
            ("observation", lambda: policy.act(junk)),
            ("reward", lambda: policy.act(OBSERVATION, 1.0 if junk is None else junk)),
            ("first", lambda: policy.act(OBSERVATION, zero, first=junk)),
            ("observation", lambda: policy.prime(junk)),
            ("rewards", lambda: policy.prime(OBSERVATION[None], 1.0 if junk is None else junk)),
            ("weights", lambda: policy.load_state({**policy.state(), "weights": junk})),
            ("precision", lambda: policy.load_state({**policy.state(), "precision": junk}, force=True)),
            ("state", lambda: policy.load_state(junk)),
            ("state", lambda: policy.runtime.load_state(junk)),
            ("state.0.n", lambda: policy.load_state({**policy.state(), "state.0.n": junk})),
            ("is_first", lambda: policy.load_state({**policy.state(), "is_first": junk})),
        ]
        for i, name in enumerate(("observation", "return_to_go", "reward", "is_first")):
            changed = [*inputs[:i], junk, *inputs[i + 1 :]]
            calls.append((name, lambda changed=changed: policy.runtime.step(*changed)))  # type: ignore[misc]
        for name, call in calls:
            try:
                call()
            except ValueError as error:
                text = str(error)
                # an empty mapping lacks everything
                assert text.startswith(f"{name}: ") or (isinstance(junk, dict) and ": missing" in text), text
                assert len(text.splitlines()) == 1 and len(text) < 300


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two saved states are the same to the bit."""
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


class TestFirst:
    MASK = (False, True, True)

    @pytest.mark.parametrize(
        "as_mask", [list, np.array, lambda m: np.array(m, np.float32), lambda m: [int(v) for v in m]]
    )
    def test_it_is_a_reset_of_these_rows_just_before(
        self, policy: Policy, target: str, exported: ExportFunction, as_mask: Any
    ) -> None:
        rng = np.random.default_rng(0)
        with load_policy(exported("state_ms", "observed", batch=BATCH), target, threads=1) as other:
            for each in (policy, other):
                each.reset(target_return=[3.0, 4.0, 5.0])
            for number in range(8):
                observation, reward = rng.standard_normal(OBSERVATION.shape), rng.standard_normal(BATCH)
                mask = self.MASK if number in (3, 6) else (False, False, False)
                other.reset(rows=mask)
                found = policy.step(observation, reward, first=as_mask(mask))
                for name, expected in other.step(observation, reward).items():
                    np.testing.assert_array_equal(found[name], expected)
                assert same(policy.state(), other.state())
            assert policy.return_to_go[1:].tolist() != [4.0, 5.0]
            policy.act(observation, first=True)
        assert policy.return_to_go.tolist() == [3.0, 4.0, 5.0]

    @pytest.mark.parametrize(
        ("observation", "reward", "first", "message"),
        [
            (OBSERVATION + np.nan, [0, 0, 0], MASK, "observation: expected finite"),
            (OBSERVATION.tolist()[:2], [0, 0, 0], MASK, "observation: expected float32 of shape"),
            (OBSERVATION, [np.nan, 0, 0], MASK, "reward: expected finite values, got nan in row 0, which is past"),
            (OBSERVATION, [None, 0, 0], MASK, "reward: expected finite values, got nan in row 0, which is past"),
            (OBSERVATION, [1e38, 0, 0], MASK, "reward: expected finite values of magnitude"),
            (OBSERVATION, None, MASK, "reward: required after the first step"),
            (OBSERVATION, [0, 0, 0], [True], r"first: expected a boolean, or a mask of 3 booleans, got \[True\]"),
            (OBSERVATION, [0, 0, 0], 1, "first: expected a boolean, or a mask of 3 booleans, got 1"),
            (OBSERVATION, [0, 0, 0], [0, 2, 1], r"first: expected a boolean, or a mask of 3 booleans, got \[0, 2, 1\]"),
        ],
    )
    def test_where_anything_is_refused_nothing_was_reset(
        self, policy: Policy, observation: Any, reward: Any, first: Any, message: str
    ) -> None:
        step(policy)
        before = policy.state()
        for act in (policy.act, policy.step):
            with pytest.raises(ValueError, match=message):
                act(observation, reward, first=first)  # type: ignore[operator]
            assert same(policy.state(), before)

    def test_rows_that_start_have_no_reward(self, policy: Policy) -> None:
        step(policy)
        policy.act(OBSERVATION, [0.5, None, np.inf], first=self.MASK)
        assert policy.return_to_go.tolist() == [4.5, 5.0, 5.0]

    def test_it_starts_what_a_step_has_lost(self, policy: Policy, target: str) -> None:
        expected = policy.act(OBSERVATION)
        step(policy)
        poison(policy.runtime, target)
        with pytest.raises(StepError):
            step(policy)
        with pytest.raises(ValueError, match="observation: expected finite"):
            policy.act(OBSERVATION + np.nan, first=True)
        if policy.runtime.in_place:  # type: ignore[attr-defined]
            with pytest.raises(StepError, match="lost"):  # row 0 still is
                policy.act(OBSERVATION, np.zeros(BATCH), first=self.MASK)
        np.testing.assert_array_equal(policy.act(OBSERVATION, first=True), expected)
        step(policy)


class TestPrime:
    def test_it_is_so_many_steps(self, policy: Policy, target: str, exported: ExportFunction) -> None:
        rng = np.random.default_rng(0)
        observations, rewards = rng.standard_normal((6, *OBSERVATION.shape)), rng.standard_normal((6, BATCH))
        rewards[0] = np.nan  # there was no step before
        with load_policy(exported("state_ms", "observed", batch=BATCH), target, threads=1) as other:
            for observation, reward in zip(observations, rewards, strict=True):
                other.act(observation, reward)
            policy.prime(observations, rewards)
            assert same(policy.state(), other.state()) and same(policy.outputs, other.outputs)
            policy.prime({"observation": observations[:1]}, rewards[1:2])
            other.act(observations[0], rewards[1])
            assert same(policy.state(), other.state())

    @pytest.mark.parametrize(
        ("observations", "rewards", "message"),
        [
            (
                OBSERVATION,
                None,
                r"observation: expected float32 of shape \(N, 3, 204\), got float32 of shape \(3, 204\)",
            ),
            ([*[OBSERVATION] * 3, OBSERVATION + np.nan], np.zeros((4, 3)), r"got nan at \[3, 0, 0\]"),
            ([OBSERVATION] * 2, [0.0, 0.0], r"rewards: expected shape \(2, 3\), got shape \(2,\)"),
            ([OBSERVATION] * 2, None, "rewards: step 0: required"),
            ([OBSERVATION] * 2, [[0, 0, 0], [0, None, 0]], "rewards: step 1: expected finite values, got nan in row 1"),
            ([OBSERVATION] * 9, np.full((9, 3), -1e18), "return_to_go: step 1: expected finite values of magnitude"),
        ],
    )
    def test_where_anything_is_refused_nothing_was_done(
        self, policy: Policy, observations: Any, rewards: Any, message: str
    ) -> None:
        step(policy)
        before = policy.state()
        with pytest.raises(ValueError, match=message):
            policy.prime(observations, rewards)
        assert same(policy.state(), before)

    def test_no_steps_are_none(self, policy: Policy) -> None:
        before = policy.state()
        policy.prime(np.zeros((0, *OBSERVATION.shape)))
        assert same(policy.state(), before)


class TestProcesses:
    def test_a_pickled_policy_is_loaded_again_at_the_start_of_an_episode(self, policy: Policy, target: str) -> None:
        expected = policy.act(OBSERVATION)
        with pickle.loads(pickle.dumps(policy)) as again:
            assert (again.origin, again.origin.target) == (policy.origin, target)
            assert fresh_rows(again) == [0, 1, 2]
            np.testing.assert_array_equal(again.act(OBSERVATION), expected)

    def test_one_around_a_runtime_says_that_it_cannot(self, policy: Policy) -> None:
        with pytest.raises(TypeError, match=r"^this policy cannot be sent to another process: it was not loaded by"):
            pickle.dumps(Policy(policy.runtime, policy.task))


class TestClosed:
    def test_every_method_says_so(self, target: str, exported: ExportFunction) -> None:
        policy = load_policy(exported("state_ms", "observed", batch=BATCH), target, threads=1)
        state, zero = policy.state(), np.zeros(BATCH, np.float32)
        policy.close()
        policy.close()
        runtime = policy.runtime
        for use in (
            policy.reset,
            policy.state,
            lambda: policy.act(OBSERVATION),
            lambda: policy.act("junk"),  # type: ignore[arg-type]
            lambda: policy.load_state(state),
            runtime.reset,
            runtime.state,
            lambda: runtime.step(OBSERVATION, zero, zero, zero),
            lambda: runtime.load_state({k: v for k, v in state.items() if k.startswith("state.")}),
        ):
            with pytest.raises(RuntimeError, match=r"^the policy is closed; load it again$"):
                use()
        assert policy.action_logits.shape == (BATCH, 8, 274) and policy.return_to_go.shape == (BATCH,)


class TestNotFinite:
    def test_nan_does_not_survive_the_first_step_of_an_episode(self, policy: Policy, target: str) -> None:
        zero, one = np.zeros(BATCH, np.float32), np.ones(BATCH, np.float32)
        expected = policy.runtime.step(OBSERVATION, one, zero, one).action_logits.copy()
        after = policy.runtime.state()
        poison(policy.runtime, target)
        again = policy.runtime.step(OBSERVATION, one, zero, one)  # no reset
        np.testing.assert_array_equal(again.action_logits, expected)
        for name, value in policy.runtime.state().items():
            np.testing.assert_array_equal(value, after[name])

    def test_nan_in_one_row_survives_neither_there_nor_elsewhere(self, policy: Policy, target: str) -> None:
        """To say nothing of the graph: at the steps of other rows, none is restarted."""
        zero, one = np.zeros(BATCH, np.float32), np.ones(BATCH, np.float32)
        runtime: Any = policy.runtime
        runtime.step(OBSERVATION, one, zero, one)
        before, second = runtime.state(), np.eye(BATCH, dtype=np.float32)[1]
        expected = runtime.step(OBSERVATION, one, zero, second).action_logits.copy()
        for value in before.values():
            value[1] = np.nan
        if target == "native":
            with pytest.raises(ValueError, match="finite"):  # no other way leads to such a state
                runtime._load(before)
            return
        runtime._load(before)
        np.testing.assert_array_equal(runtime.step(OBSERVATION, one, zero, second).action_logits, expected)

    def test_a_step_with_results_that_are_not_finite_is_an_error_and_not_an_action(
        self, policy: Policy, target: str
    ) -> None:
        policy.reset(target_return=[1.0, 2.0, 3.0])
        expected = policy.act(OBSERVATION)
        step(policy)
        logits, before = policy.action_logits, policy.return_to_go
        poison(policy.runtime, target)
        for _ in range(2):
            with pytest.raises(StepError):
                policy.act(OBSERVATION, np.ones(BATCH))
            np.testing.assert_array_equal(policy.return_to_go, before)
            np.testing.assert_array_equal(policy.action_logits, logits)
        if policy.runtime.in_place:  # type: ignore[attr-defined]
            with pytest.raises(StepError, match=r"the state was lost .* call reset|row 0 was lost .* reset it"):
                policy.state()
            policy.reset([0, 1])
            with pytest.raises(StepError, match=r"the state was lost|row 2 was lost"):
                step(policy)
        policy.reset()
        np.testing.assert_array_equal(policy.act(OBSERVATION), expected)


class TestFork:
    def test_a_child_gets_one_error_at_once_and_ends(self, target: str, exported: ExportFunction) -> None:
        """Two threads, so that there are some that the child has not."""
        path = exported("state_ms", "observed", batch=BATCH)
        policy = load_policy(path, target, threads=2)
        step(policy)

        def in_child() -> None:
            for use in (lambda: step(policy), policy.reset, policy.state, policy.runtime.reset, policy.runtime.state):
                with pytest.raises(RuntimeError, match="loaded before this process forked"):
                    use()
            policy.close()
            policy.close()

        assert exit_code_of_fork(in_child) == 0
        step(policy)  # the parent's goes on
        policy.close()

    def test_what_a_child_loads_itself_runs_or_is_refused(self, target: str, exported: ExportFunction) -> None:
        path = exported("state_ms", "observed", batch=BATCH)
        with load_policy(path, target, threads=2) as before:
            step(before)

            def in_child() -> None:
                # one set of threads, or one hold on a GPU, for the whole process, which the child has not
                if target in ("pytorch", "tvm", "tensorrt"):
                    with pytest.raises(LramError, match="in use before this process forked"):
                        load_policy(path, target, threads=2)
                    return
                with load_policy(path, target, threads=2) as own:
                    step(own)

            assert exit_code_of_fork(in_child) == 0


def exit_code_of_fork(function: Callable[[], object], seconds: float = 60.0) -> int:
    """Exit code of a forked process that runs a function; killed, and a failure, if it does not end."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.__stderr__, flush=True)
        os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, 9)
    os.waitpid(process, 0)
    raise AssertionError("the forked process did not end")


class TestThreads:
    def test_a_second_thread_is_refused_and_the_first_goes_on(self, policy: Policy) -> None:
        """The running step is a real one, held where it fills its inputs: what comes then finds the policy in use."""
        expected = policy.act(OBSERVATION).copy()
        policy.reset()
        inside, go_on, results = threading.Event(), threading.Event(), []
        runtime: Any = policy.runtime
        # an engine that takes inputs and steps in one call fills none
        holder, name = (runtime, "_stepped") if hasattr(runtime, "_stepped") else (runtime._inputs, "fill")
        held = getattr(holder, name)

        def slowly(*values: Any) -> Any:
            done = held(*values)
            inside.set()
            go_on.wait(60)
            return done

        setattr(holder, name, slowly)
        first = threading.Thread(target=lambda: results.append(policy.act(OBSERVATION)))
        first.start()
        assert inside.wait(60)
        for use in (lambda: step(policy), policy.reset, policy.state, policy.close, policy.runtime.reset):
            with pytest.raises(RuntimeError, match=r"^the policy is in use by another thread"):
                use()
        go_on.set()
        first.join()
        np.testing.assert_array_equal(results[0], expected)
        setattr(holder, name, held)
        step(policy)

    def test_threads_that_take_turns_are_fine(self, policy: Policy) -> None:
        for _ in range(2):
            turn = threading.Thread(target=step, args=[policy])
            turn.start()
            turn.join()
        assert fresh_rows(policy) == []


@pytest.mark.parametrize("threads", [1.5, "2", True, 0, -1, float("nan")])
def test_a_number_of_threads_is_a_whole_number(exported: ExportFunction, threads: Any) -> None:
    with pytest.raises(UsageError, match="threads: expected a whole number, 1 or more, got"):
        load_policy(exported("state_ms", "observed", batch=BATCH), threads=threads)
