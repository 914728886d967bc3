"""A policy between topics, without ROS: the loop in its thread, messages from another, everything a node does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lram_ros.ending import EndingClock
from lram_ros.inlets import Arrays, Joints, inlet_of
from lram_ros.outlet import Outlet
from lram_ros.parameters import Settings, settings_of
from lram_ros.report import ERROR, OK, WARN, Reporter
from lram_ros.robot import Ports, TopicRobot
from lram_ros.session import Session
from lram_ros.simulated import SimulatedClock
from lram_ros.topics import (
    FLOAT64S,
    JOINT_STATE,
    ActionTopic,
    action_topic,
    declared_for,
    held_topics,
    observation_topics,
    safe_action_of,
)

from lram_export import LramError
from lram_export.flight.reader import read_flight
from lram_export.interpolation import Between
from lram_export.loop.clock import Clock
from lram_export.loop.control import LoopOptions
from lram_export.loop.program import Wishes
from lram_export.loop.warmup import warm_up
from lram_export.policy import Policy, load_policy
from tests.conftest import ExportFunction
from tests.ros.arms import RATE, values
from tests.ros.definitions import message


class Node:
    """What the node does of it, with nobody between publisher and subscriber."""

    def __init__(self, bundle: Path, now: Callable[[], float] = time.perf_counter, **told: Any) -> None:
        self.now, self.sent = now, []
        self.settings: Settings = settings_of(values(bundle=str(bundle), wait=2.0, **told))
        session = self.session = Session.open(self.settings)
        said = {p.name: p.default for p in declared_for(session.policy)}
        seen, action = observation_topics(session.policy, said), action_topic(session.policy, said)
        self.inlets = {one.name: inlet_of(one) for one in seen}
        outlet = Outlet(action, {FLOAT64S: message(FLOAT64S)}, 1 / RATE, lambda: None)
        held = None
        if self.settings.holds:
            held = Joints(*held_topics(action, seen, self.settings.holds, session.policy), action.tensor.shape[1:])
        safe = safe_action_of(action, session.policy, self.settings.safe_action)
        self.ports = Ports(
            self.inlets, outlet, self.sent.append, now, self.settings.stale, self.settings.wait, safe, held
        )
        self.over = threading.Event()
        self.robot = self.new_robot()

    def new_robot(self) -> TopicRobot:
        return TopicRobot(self.ports, self.session.is_ending, self.session.begin)

    def joints(self, hip: float, knee: float) -> None:
        names, positions, velocities = ["knee", "other", "hip"], [0.0, 0.0, hip], [knee, 0.0, 0.0]
        state = message(JOINT_STATE)(name=names, position=positions, velocity=velocities)
        for inlet in (*self.inlets.values(), *filter(None, [self.ports.held])):
            inlet.take(state, self.now())

    def activate(self, **options: Any) -> None:
        self.robot = self.new_robot()
        self.over.clear()
        self.session.start(self.robot, over=self.over.set, **options)

    def until(self, done: Callable[[], bool], joints: tuple[float, float] | None = (1.0, 2.0)) -> None:
        """Publish until something is so."""
        end = time.monotonic() + 10
        while not done():
            assert time.monotonic() < end, self.session.failure
            if joints is not None:
                self.joints(*joints)
            time.sleep(0.002)

    def commands(self) -> list[list[float]]:
        return [list(one.data) for one in self.sent]


@pytest.fixture
def node(bundle: Path) -> Iterator[Node]:
    node = Node(bundle)
    yield node
    node.session.close()


def test_commands_follow_from_messages_and_end_with_the_safe_action(node: Node) -> None:
    node.activate()
    node.until(lambda: len(node.sent) >= 5)
    assert node.session.stop()
    assert node.commands()[:5] == [[1.0, 2.0]] * 5 and node.commands()[-1] == [0.5, 0.5]
    assert node.commands().count([0.5, 0.5]) == 1 and not node.session.failure
    sent = len(node.sent)
    time.sleep(0.03)
    assert len(node.sent) == sent, "a loop that was ended sends nothing"


def test_an_episode_begins_when_everything_was_read(node: Node) -> None:
    node.activate()
    time.sleep(0.1)
    assert node.session.is_running and not node.sent
    node.until(lambda: bool(node.sent))
    assert node.commands()[0] == [1.0, 2.0]


def test_what_never_comes_ends_the_loop_and_nothing_is_sent(bundle: Path) -> None:
    node = Node(bundle, stale=0.05)
    node.ports = Ports(**{**vars(node.ports), "wait": 0.05})
    node.activate()
    assert node.over.wait(5)
    assert node.session.failure == "the robot's reset() failed: joint_states: hip/position: no message yet"
    assert node.sent == [] and node.session.close()


def test_deactivating_waits_for_no_message(node: Node) -> None:
    node.activate()
    began = time.monotonic()
    assert node.session.stop() and time.monotonic() - began < 1.5
    assert not node.session.failure and node.sent == []


def test_messages_that_stop_coming_are_bridged_then_the_robot_is_stopped(bundle: Path) -> None:
    node = Node(bundle, stale=0.05, bridge=5)
    node.activate()
    node.until(lambda: len(node.sent) > 10)
    node.until(node.over.is_set, joints=None)
    assert "6 steps in a row with a fault, the last: missing: joint_states: hip/position" in node.session.failure
    assert node.session.account.faults == {"missing": 6} and node.commands()[-1] == [0.5, 0.5]
    row = Reporter().row(node.session, "inactive")
    assert (row.level, row.message) == (ERROR, node.session.failure)
    assert dict(row.values)["fault: missing"] == "6"
    node.activate()  # once more
    node.until(lambda: node.session.account.steps > 3)
    assert not node.session.failure and node.session.close()


def test_a_number_beyond_limits_is_a_fault_that_diagnostics_warn_of(node: Node) -> None:
    node.activate()
    node.until(lambda: node.session.account.steps > 3)
    reporter = Reporter()
    reporter.row(node.session, "active")
    node.until(lambda: node.session.account.faults["out of limits"] > 0, joints=(99.0, 0.0))
    node.until(lambda: len(node.sent) > 30)
    assert node.session.stop()
    row = reporter.row(node.session, "active")
    assert row.level == WARN and "since the last report" in row.message
    assert all(max(map(abs, command)) <= 8 for command in node.commands())


def test_diagnostics_tell_what_runs_and_how(node: Node) -> None:
    assert Reporter().row(None, "unconfigured").message == "unconfigured"
    node.activate()
    node.until(lambda: len(node.sent) > 10, joints=(20.0, 2.0))
    assert node.session.stop()
    row = Reporter().row(node.session, "inactive")
    said = dict(row.values)
    assert said["target"] == "onnxruntime" and said["rate"] == "100 Hz" and said["commands"] == "100 Hz, hold"
    origin = node.session.policy.origin
    assert origin is not None and said["digest"] == origin.digest != ""
    assert int(said["steps"]) == node.session.account.steps
    assert said["held back"].startswith("action: clamped: hip ")
    assert any(name.startswith("step p99, last ") and text.endswith(" ms") for name, text in row.values)
    assert row.level in (OK, WARN) and all(isinstance(text, str) for pair in row.values for text in pair)


def test_the_first_action_is_bounded_from_what_the_joints_hold(bundle: Path) -> None:
    node = Node(bundle, holds="position")
    node.activate()
    node.until(lambda: bool(node.sent), joints=(7.0, 7.0))
    assert node.session.close()
    assert node.commands()[0] == [7.0, 4.0], "the knee holds 0 and may change by 4"


def test_rewards_of_a_step_are_added_up_and_those_before_an_episode_forgotten(node: Node) -> None:
    robot = node.robot
    node.joints(0.0, 0.0)
    robot.add_reward(9.0)
    robot.reset()
    assert robot.brought() is None
    robot.add_reward(0.5)
    robot.add_reward(0.25)
    assert robot.brought() == 0.75 and robot.brought() is None


def test_a_reward_that_comes_with_a_reading_is_given_with_it(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    act = node.session.policy.act

    def noted(observation: Any, reward: Any = None) -> Any:
        given.append((float(observation["observation"][0]), reward))
        return act(observation)

    monkeypatch.setattr(node.session.policy, "act", noted)
    node.joints(0.0, 0.0)
    node.activate()
    node.until(lambda: len(given) == 1, joints=None)
    for step in range(1, 20):
        node.robot.add_reward(step / 4)
        node.joints(step / 4, 0.0)
        node.until(lambda step=step: any(hip == step / 4 for hip, _ in given), joints=None)
    assert node.session.stop()
    rewarded = [(hip, reward) for hip, reward in given if reward is not None]
    assert sum(reward for _, reward in rewarded) == sum(range(1, 20)) / 4
    assert all(reward == hip for hip, reward in rewarded if reward is not None) or len(rewarded) >= 15


def test_an_end_waits_until_a_new_episode_is_asked_for(node: Node) -> None:
    node.activate()
    node.until(lambda: len(node.sent) > 3)
    node.robot.tell("done")
    time.sleep(0.1)
    steps = node.session.account.steps
    node.until(lambda: True)
    time.sleep(0.05)
    assert node.session.account.steps == steps and node.session.account.episodes == 1
    node.session.new_episode()
    node.until(lambda: node.session.account.steps > steps + 2)
    assert node.session.account.episodes == 2


def test_a_swap_and_an_episode_are_only_of_a_loop_that_runs(node: Node, bundle: Path) -> None:
    for ask in (node.session.new_episode, lambda: node.session.swap(bundle)):
        with pytest.raises(LramError, match=r"^not active$"):
            ask()
    node.activate()
    node.until(lambda: len(node.sent) > 3)
    before = node.session.policy.runtime
    node.session.swap(bundle)
    node.until(lambda: node.session.policy.runtime is not before)
    sent = len(node.sent)
    node.until(lambda: len(node.sent) > sent + 3)
    assert not node.session.failure


def test_a_bundle_that_could_not_take_over_is_told_and_not_called_the_one_that_runs(
    node: Node, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter, asked = Reporter(), threading.Event()
    node.activate()
    node.until(lambda: len(node.sent) > 3)
    node.session.swap(tmp_path / "none.lram")
    node.until(lambda: bool(node.session.swap_failure) and not node.session.is_swapping)
    reporter.row(node.session, "active")
    row = reporter.row(node.session, "active")  # not only once
    assert dict(row.values)["bundle"] == node.session.bundle == str(bundle)
    assert row.level == WARN and row.message.startswith("active")
    assert f"{tmp_path / 'none.lram'}: not swapped: " in row.message and "\n" not in row.message

    def warm_up_later(policy: Policy) -> None:
        assert asked.wait(60)
        warm_up(policy)

    monkeypatch.setattr("lram_export.loop.control.warm_up", warm_up_later)
    node.session.swap(bundle)
    with pytest.raises(LramError, match=r"^another bundle is being loaded; ask again when it runs, or could not be"):
        node.session.swap(bundle)
    asked.set()
    node.until(lambda: not node.session.is_swapping)
    assert not node.session.swap_failure and "not swapped" not in reporter.row(node.session, "active").message


def test_there_are_never_two_loops(node: Node) -> None:
    node.activate()
    with pytest.raises(LramError, match=r"^a loop runs already$"):
        node.session.start(node.new_robot())
    node.until(lambda: len(node.sent) > 3)


def test_a_policy_without_a_return_cannot_be_told_one(node: Node, bundle: Path) -> None:
    with pytest.raises(LramError, match=r"^target_return: this policy aims at no return$"):
        node.session.aim(1.0)
    with pytest.raises(LramError, match=r"^target_return: this policy aims at no return$"):
        Node(bundle, target_return=1.0)


def test_every_episode_that_begins_later_aims_at_the_return_that_was_told(exported: ExportFunction) -> None:
    policy = load_policy(exported("state_ms", targets=("native",)), "native", threads=1)
    size = policy.spec.inputs[0].size
    session = Session(policy, LoopOptions(RATE, Between()), Wishes(bundle=Path("state.lram")))
    inlet = Arrays("numbers", (size,))
    aims: list[float] = []  # what the policy aims at with each message, seen by the thread that steps it
    outlet = Outlet(
        ActionTopic("~/commands", FLOAT64S, policy.spec.outputs[0]),
        {FLOAT64S: message(FLOAT64S)},
        1 / RATE,
        lambda: None,
    )

    def send(message: object) -> None:
        aims.append(float(policy.state()["target_return"][0]))

    ports = Ports({"observation": inlet}, outlet, send, time.perf_counter, 60.0, 2.0)
    robot = TopicRobot(ports, session.is_ending, session.begin)
    inlet.take(message(FLOAT64S)(data=[0.0] * size), time.perf_counter())

    def target_in(episode: int) -> float:
        end = time.monotonic() + 10
        while session.account.episodes < episode:
            assert time.monotonic() < end and not session.failure
            time.sleep(0.002)
        aims.clear()
        while len(aims) < 3:
            assert time.monotonic() < end and not session.failure
            time.sleep(0.002)
        return aims[-1]

    assert policy.task is not None
    scale, usual = policy.task.reward_scale, policy.task.target_return
    session.start(robot)
    assert target_in(1) == np.float32(usual) / np.float32(scale)
    session.aim(2.0)
    assert target_in(1) == np.float32(usual) / np.float32(scale), "not the one under way"
    robot.tell("new episode")
    assert target_in(2) == np.float32(2.0) / np.float32(scale)
    session.aim(3.0)
    session.new_episode()
    assert target_in(3) == np.float32(3.0) / np.float32(scale)
    session.aim(None)
    robot.tell("new episode")
    assert target_in(4) == np.float32(usual) / np.float32(scale)
    with pytest.raises(LramError, match=r"^target_return: expected at most .*, got 1e\+300$"):
        session.aim(1e300)
    assert session.close() and not session.failure


def test_a_slow_loop_ends_at_once_and_does_not_send_the_rest_of_a_step(bundle: Path) -> None:
    for told in ({"rate": 0.05}, {"rate": 0.05, "controller_rate": 0.5, "between": "linear"}):
        node = Node(bundle, **told)
        node.activate()
        node.until(lambda node=node: bool(node.sent))
        began = time.monotonic()
        assert node.session.stop() and time.monotonic() - began < 3
        assert node.commands() == [[1.0, 2.0], [0.5, 0.5]] and not node.session.failure
        assert node.session.close()


def test_a_clock_in_real_time_ticks_as_one_that_nobody_ends() -> None:
    clock = EndingClock(0.15, lambda: False)
    clock.start()
    began = time.monotonic()
    assert [clock.wait() for _ in range(2)] == [1, 1] and clock.missed == 0
    assert time.monotonic() - began >= 0.29


def test_a_bundle_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LramError) as caught:
        Node(tmp_path / "none.lram")
    assert "none.lram" in str(caught.value) and "\n" not in str(caught.value)


class Simulation:
    def __init__(self) -> None:
        self.seconds = 10.0

    def now(self) -> float:
        return self.seconds


def test_the_loop_goes_by_the_clock_of_a_simulation(bundle: Path) -> None:
    simulation = Simulation()
    node = Node(bundle, simulation.now)
    made: list[Clock] = []

    def clock(period: float) -> Clock:
        made.append(SimulatedClock(period, simulation.now, node.session.is_ending))
        return made[-1]

    node.joints(1.0, 2.0)
    node.activate(clock=clock)
    node.until(lambda: len(node.sent) == 1, joints=None)
    time.sleep(0.1)
    assert len(node.sent) == 1, "it stands still"
    for step in range(2, 30):
        simulation.seconds += 1 / RATE
        node.joints(1.0, 2.0)
        node.until(lambda step=step: len(node.sent) == step, joints=None)
    assert made[0].missed == 0
    simulation.seconds = 0.0  # it begins anew
    node.joints(1.0, 2.0)
    for _ in range(5):
        sent = len(node.sent)
        simulation.seconds += 1 / RATE
        node.joints(1.0, 2.0)
        node.until(lambda sent=sent: len(node.sent) > sent, joints=None)
    began = time.monotonic()
    assert node.session.close() and time.monotonic() - began < 1.0, "a clock that stands still is not waited for"
    assert not node.session.failure and np.isfinite(node.commands()).all()


def test_a_simulation_that_is_set_back_during_a_step_is_not_waited_for() -> None:
    seconds = [100.0]
    threads = [threading.Timer(0.05 * n, lambda n=n: seconds.__setitem__(0, 0.011 * n)) for n in (1, 2)]
    clock = SimulatedClock(0.02, lambda: seconds[0], lambda: False)
    clock.start()
    seconds[0] = 0.0
    for thread in threads:
        thread.start()
    waited = threading.Thread(target=clock.wait, daemon=True)
    waited.start()
    waited.join(5)
    assert not waited.is_alive() and seconds[0] == 0.022 and clock.missed == 0


def test_a_flight_is_recorded_from_activation_to_deactivation(bundle: Path, tmp_path: Path) -> None:
    node = Node(bundle, record=str(tmp_path / "day.mcap"))
    node.activate()
    node.until(lambda: len(node.sent) > 5)
    assert node.session.stop()
    steps = list(read_flight(tmp_path / "day.mcap").steps())
    assert len(steps) == node.session.account.steps
    assert [one[0].tolist() for step in steps for one in step.sent] == node.commands()[:-1]
    with pytest.raises(LramError, match=r"day\.mcap"):
        node.activate()  # nothing is overwritten
    assert node.session.close()
