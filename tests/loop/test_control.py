"""What the loop does on each fault, event and deadline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lram_export import ExportOptions, Policy, export_bundle, load_policy
from lram_export.interpolation import Between
from lram_export.loop.clock import Clock
from lram_export.loop.control import Loop, SafeStopError
from lram_export.loop.rehearsal import Rehearsal
from lram_export.loop.robot import DONE, NEW_EPISODE
from lram_export.loop.warmup import warm_up
from lram_export.spec.interface import Safety
from tests.conftest import ExportFunction
from tests.loop.robots import NAN, RATE, FakeTime, Scripted, follower, options

Start = Callable[..., tuple[Loop, Scripted]]
ONE, TWO, THREE, FOUR = ([float(i), 0.0] for i in (1, 2, 3, 4))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loop") / "follower.lram"
    export_bundle(follower(), None, path, ExportOptions(("native",), report=False, reference_steps=20))
    return path


@pytest.fixture
def policy(bundle: Path) -> Iterator[Policy]:
    with load_policy(bundle) as loaded:
        yield loaded


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr("lram_export.loop.clock.time", fake)
    return fake


@pytest.fixture
def start(policy: Policy, time: FakeTime) -> Start:
    def make(readings: list[Any], events: list[Any] | None = None, **said: Any) -> tuple[Loop, Scripted]:
        robot = Scripted(time, readings, events or [])
        loop = Loop(policy, robot, options(**said))
        robot.end = loop.end
        return loop, robot

    return make


def steps_taken(policy: Policy) -> float:
    return float(policy.state()["state.count"].item())


FAULTS = {
    "missing": None,
    "not finite": NAN,
    "out of limits": [9.0, 0.0],
    "unusable": [1.0, 2.0, 3.0],
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_reading_that_fails_is_bridged_on_the_last_good_one(
    kind: str, start: Start, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    loop, robot = start([ONE, FAULTS[kind], FAULTS[kind], TWO])
    loop.run()
    assert robot.actions == [1, 1, 1, 2]
    assert steps_taken(policy) == 4  # the policy's time goes on
    assert (loop.account.faults, loop.account.bridged) == ({kind: 2}, 2)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert kind in caplog.text and "good again, after 2 steps with a fault" in caplog.text
    assert robot.calls == ["reset", "close"]


def test_out_of_limits_names_the_joint(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    start([ONE, [1.0, 101.0], ONE])[0].run()
    assert "observation: knee: expected -8 to 100, got 101" in caplog.text


def test_a_robot_that_raises_has_no_reading(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    loop, robot = start([ONE, TimeoutError("encoder 3"), TWO])
    loop.run()
    assert robot.actions == [1, 1, 2]
    assert "missing: TimeoutError: encoder 3" in caplog.text or "missing: encoder 3" in caplog.text


def test_the_policy_waits_instead_where_it_is_told_so(start: Start, policy: Policy) -> None:
    loop, robot = start([ONE, None, None, TWO], by="hold")
    loop.run()
    assert robot.actions == [1, 1, 1, 2]
    assert steps_taken(policy) == 2


@pytest.mark.parametrize("by", ["coast", "hold"])
def test_one_fault_too_many_in_a_row_stops_the_robot(by: str, start: Start) -> None:
    loop, robot = start([ONE, None, NAN, None, ONE], by=by, bridge=2)
    with pytest.raises(SafeStopError, match="stopped: 3 steps in a row with a fault, the last: missing"):
        loop.run()
    assert robot.actions == [1, 1, 1]
    assert robot.calls == ["reset", "stop", "close"]
    assert loop.account.faults == {"missing": 2, "not finite": 1}


def test_faults_that_are_not_in_a_row_are_bridged_for_ever(start: Start) -> None:
    loop, robot = start([ONE, None, TWO, None, ONE, None, TWO], bridge=1)
    loop.run()
    assert robot.actions == [1, 1, 2, 2, 1, 1, 2]
    assert loop.account.bridged == 3


def test_where_there_never_was_a_reading_nothing_is_sent(start: Start) -> None:
    loop, robot = start([NAN, NAN, NAN, NAN], bridge=2)
    with pytest.raises(SafeStopError, match="not finite"):
        loop.run()
    assert robot.actions == []


def test_a_sensor_that_is_frozen_is_found_out_where_that_is_asked_for(start: Start) -> None:
    readings = [ONE, TWO, TWO, TWO, TWO, THREE]
    loop, robot = start(readings, frozen=2)
    loop.run()
    assert robot.actions == [1, 2, 2, 2, 2, 3]
    assert loop.account.faults == {"frozen": 2}
    loop, _ = start(readings)
    loop.run()
    assert not loop.account.faults


def test_a_robot_that_cannot_be_reset_is_stopped_at_once(start: Start) -> None:
    loop, robot = start([RuntimeError("no power")])
    with pytest.raises(SafeStopError, match=r"the robot's reset\(\) failed: .*no power"):
        loop.run()
    assert robot.calls == ["reset", "stop", "close"]


def test_a_stop_that_fails_does_not_keep_the_motors_running(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    loop, robot = start([RuntimeError("no power")])

    def broken() -> None:
        raise OSError("brake")

    robot.stop = broken  # type: ignore[method-assign]
    with pytest.raises(SafeStopError, match="no power"):
        loop.run()
    assert robot.calls == ["reset", "close"]
    assert "stop() failed" in caplog.text


def test_motors_that_cannot_be_stopped_are_told_of(start: Start) -> None:
    loop, robot = start([ONE])

    def broken() -> None:
        raise OSError("bus is gone")

    robot.close = broken  # type: ignore[method-assign]
    with pytest.raises(SafeStopError, match=r"close\(\) failed, its motors may run on: .*bus is gone"):
        loop.run()


def test_a_robot_that_is_gone_for_good_is_no_reason_to_forget_why_it_was_stopped(start: Start) -> None:
    loop, robot = start([ONE, None, None], bridge=1)

    def broken() -> None:
        raise OSError("bus is gone")

    robot.close = broken  # type: ignore[method-assign]
    with pytest.raises(
        SafeStopError, match=r"^stopped: 2 steps in a row .* missing; then the robot's close\(\) failed"
    ):
        loop.run()


def test_an_action_that_cannot_be_sent_is_a_fault(start: Start) -> None:
    loop, robot = start([ONE, TWO, THREE, FOUR])
    robot.failing = {1}
    loop.run()
    assert robot.actions == [1, 2, 3, 4]
    assert loop.account.faults == {"not sent": 1}
    loop, robot = start([ONE, TWO, THREE, FOUR], bridge=1)
    robot.failing = {1, 2}
    with pytest.raises(SafeStopError, match=r"not sent: .*bus is busy"):
        loop.run()


def test_an_episode_begins_anew_where_the_robot_says_so(start: Start, policy: Policy) -> None:
    loop, robot = start([ONE, TWO, THREE], [None, NEW_EPISODE])
    loop.run()
    assert robot.actions == [1, 2, 3]
    assert steps_taken(policy) == 1
    assert (loop.account.episodes, robot.calls) == (2, ["reset", "close"])


def test_nothing_is_sent_between_an_episode_and_the_next(start: Start, policy: Policy) -> None:
    loop, robot = start([ONE, TWO, THREE], [DONE, None, None, NEW_EPISODE])
    loop.run()
    assert robot.actions == [1, 2, 3]
    assert (steps_taken(policy), loop.account.episodes) == (2, 2)


def test_an_episode_begins_where_somebody_else_says_so(start: Start, policy: Policy) -> None:
    loop, robot = start([ONE, TWO, THREE])
    before = robot.act
    robot.act = lambda action: (loop.new_episode() if len(robot.sent) == 1 else None, before(action))[1]  # type: ignore[method-assign]
    loop.run()
    assert robot.calls == ["reset", "reset", "close"]
    assert steps_taken(policy) == 1


def test_the_last_reading_of_an_episode_bridges_nothing_in_the_next(start: Start) -> None:
    loop, robot = start([ONE, None, TWO], [NEW_EPISODE])
    loop.run()
    assert robot.actions == [1, 2]


def test_an_event_that_nobody_knows_stops_the_robot(start: Start) -> None:
    loop, robot = start([ONE, TWO], ["lunch"])
    with pytest.raises(SafeStopError, match=r"event\(\): expected one of new episode, done or None, got 'lunch'"):
        loop.run()
    assert robot.calls[-2:] == ["stop", "close"]


def test_rewards_of_steps_that_had_no_result_are_not_lost(start: Start, policy: Policy) -> None:
    seen: list[Any] = []
    act = policy.act

    def acting(observation: Any, reward: Any = None) -> Any:
        if len(seen) in (2, 3):
            seen.append("none")
            raise ValueError("observation: cannot be")
        seen.append(reward)
        return act(observation)

    policy.act = acting  # type: ignore[method-assign,assignment]
    loop, robot = start([ONE, TWO, THREE, FOUR, ONE, TWO])
    robot.reward = 1.0
    loop.run()
    assert seen == [None, 1.0, "none", "none", 3.0, 1.0]
    assert robot.actions == [1, 2, 2, 2, 1, 2]
    assert loop.account.faults == {"no result": 2}


def test_rewards_of_all_ticks_are_added_up(start: Start, policy: Policy) -> None:
    seen: list[Any] = []
    act = policy.act
    policy.act = lambda observation, reward=None: (seen.append(reward), act(observation))[1]  # type: ignore[method-assign,assignment]
    loop, robot = start([ONE, TWO, THREE], between=Between(4))
    robot.reward = 0.5
    loop.run()
    assert seen == [None, 2.0, 2.0]


def test_a_robot_may_be_asked_what_a_step_brought(start: Start, policy: Policy) -> None:
    seen: list[Any] = []
    act = policy.act
    policy.act = lambda observation, reward=None: (seen.append(reward), act(observation))[1]  # type: ignore[method-assign,assignment]
    told: Iterator[Any] = iter([None, 1.0, OSError("bus is busy"), 2.0])

    def brought() -> Any:
        found = next(told)
        if isinstance(found, OSError):
            raise found
        return found

    loop, robot = start([ONE, TWO, THREE, FOUR])
    robot.reward, robot.brought = 0.5, brought  # type: ignore[attr-defined]
    loop.run()
    assert seen == [None, 1.5, 3.0]
    assert loop.account.faults == {"no result": 1}


class TestDeadlines:
    def test_steps_are_a_period_apart(self, start: Start) -> None:
        loop, robot = start([ONE, TWO, THREE])
        loop.run()
        assert [when for when, _ in robot.sent] == [0, 20, 40]
        assert loop.account.missed == 0

    def test_what_is_late_is_counted_and_nothing_is_made_up_for(self, start: Start) -> None:
        loop, robot = start([ONE, TWO, THREE, FOUR])
        robot.delays = {1: 0.05}
        loop.run()
        assert [when for when, _ in robot.sent] == [0, 70, 70, 90]
        assert loop.account.missed == 1

    def test_ticks_of_a_faster_controller_that_are_over_are_left_out(self, start: Start) -> None:
        loop, robot = start([ONE, TWO], between=Between(4, "linear"))
        robot.delays = {4: 0.012}
        loop.run()
        assert robot.sent == [
            *((when, ONE) for when in (0, 5, 10, 15)),
            (32, [1.25, 0.0]),
            (32, [1.75, 0.0]),
            (35, TWO),
        ]

    def test_an_action_that_is_too_old_is_not_sent(self, start: Start, policy: Policy, time: FakeTime) -> None:
        """As behind a process that was stopped for two seconds between its reading and its action."""
        act = policy.act

        def slow(observation: Any, reward: Any = None) -> Any:
            found = act(observation)
            time.now += 2.0 if observation["observation"][0] == 2 else 0.0
            return found

        policy.act = slow  # type: ignore[method-assign,assignment]
        loop, robot = start([ONE, TWO, THREE])
        loop.run()
        assert robot.actions == [1, 3]
        assert (loop.account.stale, loop.account.missed) == (1, 1)


class TestWhatReachesTheRobot:
    def test_a_robot_that_scales_in_place_changes_nothing_of_what_comes_next(self, start: Start) -> None:
        for said in ({"between": Between(3)}, {"by": "hold"}):
            loop, robot = start([ONE, None, None, TWO], **said)
            act, seen = robot.act, []

            def scaling(action: Any, act: Any = act, seen: list[float] = seen) -> Any:
                seen.append(float(action[0]))
                action *= 2
                return act(action)

            robot.act = scaling  # type: ignore[method-assign]
            loop.run()
            assert set(seen[:-1]) <= {1.0, 2.0} and seen == sorted(seen)

    def test_a_line_is_not_gone_along_twice(self, start: Start) -> None:
        loop, robot = start([[0.0, 0.0], FOUR, None, FOUR], between=Between(4, "linear"), by="hold")
        loop.run()
        assert robot.actions == [0, 0, 0, 0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4]

    def test_a_line_begins_where_the_robot_is(self, start: Start) -> None:
        loop, robot = start([[0.0, 0.0], FOUR, [8.0, 0.0]], between=Between(4, "linear"))
        robot.failing = {5, 6, 7}  # it is at 1
        loop.run()
        assert robot.actions[4:] == [1, 2, 3, 4, 2.75, 4.5, 6.25, 8]

    def test_a_loop_that_is_always_too_late_is_stopped(self, start: Start, policy: Policy, time: FakeTime) -> None:
        act = policy.act

        def slow(observation: Any, reward: Any = None) -> Any:
            time.now += 0.2
            return act(observation)

        policy.act = slow  # type: ignore[method-assign,assignment]
        loop, robot = start([ONE] * 20, bridge=2)
        with pytest.raises(
            SafeStopError, match="3 steps in a row with a fault, the last: stale: chosen by a reading of"
        ):
            loop.run()
        assert robot.actions == []

    def test_what_a_reading_of_long_ago_says_is_not_sent(self, start: Start, time: FakeTime) -> None:
        loop, robot = start([ONE, None, None, TWO])
        observe = robot.observe

        def blocking() -> Any:
            reading = observe()
            time.now += 5.0 if reading is None else 0.0
            return reading

        robot.observe = blocking  # type: ignore[method-assign]
        loop.run()
        assert robot.actions == [1, 2]
        assert loop.account.stale == 2

    def test_rewards_that_cannot_be_added_up_are_a_fault_and_no_crash(self, start: Start) -> None:
        loop, robot = start([ONE, TWO, THREE], between=Between(2))
        robot.reward = {"speed": 1.0}
        loop.run()
        assert loop.account.faults["no result"] > 0
        assert robot.calls == ["reset", "close"]

    def test_whatever_else_fails_stops_the_robot(self, start: Start) -> None:
        loop, robot = start([ONE, TWO], [np.zeros(3)])
        with pytest.raises(SafeStopError, match=r"event\(\): expected one of"):
            loop.run()
        assert robot.calls == ["reset", "stop", "close"]

    def test_a_step_that_somebody_else_is_taking_has_no_result(self, start: Start, policy: Policy) -> None:
        act, calls = policy.act, []

        def busy(observation: Any, reward: Any = None) -> Any:
            calls.append(observation)
            if len(calls) == 2:
                raise RuntimeError("the policy is in use by another thread")
            return act(observation)

        policy.act = busy  # type: ignore[method-assign,assignment]
        loop, robot = start([ONE, TWO, THREE])
        loop.run()
        assert robot.actions == [1, 1, 3]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loop") / "held.lram"
    policy = follower(most=3.0, safety=Safety(most_change=1.0))
    export_bundle(policy, None, path, ExportOptions(("native",), report=False, reference_steps=20))
    return path


def test_changes_are_bounded_from_what_really_reached_the_robot(held: Path, time: FakeTime) -> None:
    with load_policy(held) as policy:
        robot = Scripted(time, [[0.0, 0.0], *[[3.0, 0.0]] * 5])
        loop = Loop(policy, robot, options(bridge=5))
        robot.end, robot.failing = loop.end, {1, 2, 3}
        loop.run()
    assert robot.actions == [0, 1, 1, 1, 1, 2]


@pytest.mark.parametrize(("held_then", "after"), [(1.0, [2, 3]), (0.0, [1, 2])])
def test_a_robot_is_asked_what_it_holds_where_sending_failed(
    held_then: float, after: list[float], held: Path, time: FakeTime
) -> None:
    """It may have been told all the same, and only its answer was lost."""
    answers = iter([[0.0, 0.0], [held_then, 0.0]])
    with load_policy(held) as policy:
        robot = Scripted(time, [[0.0, 0.0], *[[3.0, 0.0]] * 3])
        loop = Loop(policy, robot, options())
        robot.end, robot.failing = loop.end, {1}
        robot.holds = lambda: next(answers)  # type: ignore[attr-defined]
        loop.run()
    assert robot.actions == [0, 1, *after]


def test_a_robot_that_does_not_say_what_it_holds_is_asked_again_before_it_is_told_anything(
    held: Path, time: FakeTime
) -> None:
    with load_policy(held) as policy:
        robot = Scripted(time, [[3.0, 0.0]] * 4)
        answers = iter([TimeoutError("HOLDS"), [0.5, 0.0]])

        def holds() -> Any:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        loop = Loop(policy, robot, options())
        robot.end, robot.holds = loop.end, holds  # type: ignore[attr-defined]
        loop.run()
    assert robot.actions == [1.5, 2.5, 3]
    assert loop.account.faults == {"no result": 1}


def test_an_action_is_sent_again_while_the_robot_does_not_say_what_it_holds(held: Path, time: FakeTime) -> None:
    with load_policy(held) as policy:
        robot = Scripted(time, [[0.0, 0.0], *[[3.0, 0.0]] * 4])
        answers = iter([np.zeros(2), TimeoutError("HOLDS"), [1.0, 0.0]])

        def holds() -> Any:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        loop = Loop(policy, robot, options())
        robot.end, robot.failing, robot.holds = loop.end, {1, 2}, holds  # type: ignore[attr-defined]
        loop.run()
    assert robot.actions == [0, 1, 1, 2, 3]
    assert loop.account.faults == {"not sent": 1, "no result": 1}


def test_bounds_are_from_what_was_sent_though_the_policy_refused_a_step_meanwhile(held: Path, time: FakeTime) -> None:
    with load_policy(held) as policy:
        act, calls = policy.act, []

        def refusing(observation: Any, reward: Any = None) -> Any:
            calls.append(observation)
            if len(calls) == 3:
                raise ValueError("observation: cannot be")
            return act(observation)

        policy.act = refusing  # type: ignore[method-assign,assignment]
        robot = Scripted(time, [[0.0, 0.0], *[[3.0, 0.0]] * 2, [-3.0, 0.0]])
        loop = Loop(policy, robot, options())
        robot.end, robot.failing = loop.end, {1}
        loop.run()
    assert robot.actions == [0, 1, 1, 0]


def test_a_robot_may_say_what_it_holds_where_an_episode_begins(held: Path, time: FakeTime) -> None:
    with load_policy(held) as policy:
        robot = Scripted(time, [[3.0, 0.0]] * 4, [None, NEW_EPISODE])
        robot.holds = lambda: [0.5, 0.0]  # type: ignore[attr-defined]
        loop = Loop(policy, robot, options())
        robot.end = loop.end
        loop.run()
    assert robot.actions == [1.5, 2.5, 1.5, 2.5]


def test_readings_are_held_to_what_the_bundle_that_took_over_says(start: Start, held: Path, bundle: Path) -> None:
    loop, robot = start([ONE, FOUR, FOUR])
    act = robot.act
    robot.act = lambda action: (loop.swap(held).join() if len(robot.sent) == 1 else None, act(action))[1]  # type: ignore[method-assign]
    loop.run()
    assert robot.actions == [1, 4, 4]
    assert loop.account.faults == {"out of limits": 1}


def test_a_run_of_a_policy_with_rewards_goes_on(exported: ExportFunction, time: FakeTime) -> None:
    bundle = exported("state_ms", feedback="observed", targets=("native",))
    with load_policy(bundle) as policy:
        robot = Rehearsal.of_bundle(bundle, policy)
        Loop(policy, robot, options(steps=5)).run()
        again = Loop(policy, robot, options(steps=5))
        again.run(resumed=True)
    assert not again.account.faults


def test_an_overslept_tick_is_counted_and_followed_by_a_whole_period(time: FakeTime) -> None:
    clock, times = Clock(0.02), []
    oversleeping = iter([0.045, 0.0, 0.0])
    time.sleep = lambda seconds: setattr(time, "now", time.now + seconds + next(oversleeping))  # type: ignore[method-assign]
    clock.start()
    for _ in range(3):
        assert clock.wait() >= 1
        times.append(round(1000 * (time.now - 100)))
    assert times == [65, 85, 105]
    assert clock.missed == 1


def test_a_bundle_takes_over_between_two_steps(start: Start, bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    loop, robot = start([ONE, TWO, THREE])
    act = robot.act
    robot.act = lambda action: (loop.swap(bundle).join() if len(robot.sent) == 1 else None, act(action))[1]  # type: ignore[method-assign]
    loop.run()
    assert robot.actions == [1, 2, 3]
    assert "runs now" in caplog.text


def test_a_bundle_that_is_none_does_not_take_over(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop, robot = start([ONE, TWO])
    loop.swap(tmp_path / "none.lram").join()
    loop.run()
    assert robot.actions == [1, 2]
    assert "not swapped, the loop goes on as it was" in caplog.text


def test_warming_up_leaves_no_trace(policy: Policy) -> None:
    before = policy.state()
    warm_up(policy)
    after = policy.state()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert policy.counts()["action"].clamped.sum() == 0
    assert policy.interface.rate == RATE
