"""The node itself, over whatever middleware is installed: `colcon test`, or pytest where rclpy is.

The bundle of an arm is exported by the test, so lram-export is needed with its extra `export`; or name one that exists
by LRAM_ROS_BUNDLE: it does what it observes, the hip's position and the knee's velocity, at 100 Hz.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed: a machine with ROS 2")

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from lram_ros.node import PolicyNode
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64, Float64MultiArray
from std_srvs.srv import Trigger


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that does what it observes."""
    if "LRAM_ROS_BUNDLE" in os.environ:
        return Path(os.environ["LRAM_ROS_BUNDLE"])
    torch = pytest.importorskip("torch")
    from lram_export import ExportOptions, StepPolicy, export_bundle
    from lram_export.spec.interface import FieldInterface, Interface, Limits, Safety

    seen = FieldInterface(elements=("hip", "knee"), units=("rad", "rad/s"), limits=Limits(-50.0, 50.0))
    safety = Safety(most_change=4.0, safe_action=0.5)
    done = FieldInterface(elements=("hip", "knee"), units=("rad",), limits=Limits(-8.0, 8.0), safety=safety)
    interface = Interface(100.0, {"observation": seen}, {"action": done})
    path = tmp_path_factory.mktemp("bundle") / "arm.lram"
    policy = StepPolicy(torch.nn.Identity(), observation=2, action=2, interface=interface)
    export_bundle(policy, None, path, ExportOptions(("onnxruntime",), report=False))
    return path


class Graph:
    """The node, and one beside it that drives it from outside."""

    def __init__(self, bundle: Path, **parameters: Any) -> None:
        told = {"bundle": str(bundle), "stale": 0.3, **{k.replace("__", "."): v for k, v in parameters.items()}}
        self.node = PolicyNode(parameter_overrides=[Parameter(name, value=value) for name, value in told.items()])
        self.other = rclpy.create_node("other")
        self.executor = SingleThreadedExecutor()
        for node in (self.node, self.other):
            self.executor.add_node(node)
        self.joints = self.other.create_publisher(JointState, "joint_states", qos_profile_sensor_data)
        self.clock = self.other.create_publisher(Clock, "/clock", 10)
        self.commands: list[list[float]] = []
        self.diagnostics: list[Any] = []
        self.hip: float | None = 1.0
        self.other.create_subscription(Float64MultiArray, "/policy_node/commands", self._command, 10)
        self.other.create_subscription(DiagnosticArray, "/diagnostics", self._diagnosed, 10)
        self.other.create_timer(0.005, self._publish)

    def _command(self, message: Float64MultiArray) -> None:
        self.commands.append(list(message.data))

    def _diagnosed(self, message: DiagnosticArray) -> None:
        self.diagnostics += message.status

    def _publish(self) -> None:
        if self.hip is not None:
            state = JointState(name=["knee", "hip"], position=[0.0, self.hip], velocity=[-2.0, 0.0])
            self.joints.publish(state)

    def until(self, done: Callable[[], bool], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end
            self.executor.spin_once(timeout_sec=0.02)

    def ask(self, kind: Any, name: str, request: Any = None) -> Any:
        client = self.other.create_client(kind, f"/policy_node/{name}")
        self.until(client.service_is_ready)
        future = client.call_async(kind.Request() if request is None else request)
        self.until(future.done)
        return future.result()

    def change(self, transition: int) -> bool:
        request = ChangeState.Request()
        request.transition.id = transition
        return bool(self.ask(ChangeState, "change_state", request).success)

    def state(self) -> int:
        return int(self.ask(GetState, "get_state").current_state.id)

    def set(self, name: str, value: Any) -> Any:
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        return self.ask(SetParameters, "set_parameters", request).results[0]

    def diagnosed(self, words: str) -> Any:
        """The next status with these words in it."""
        self.diagnostics.clear()
        self.until(lambda: any(words in status.message for status in self.diagnostics))
        return next(status for status in self.diagnostics if words in status.message)

    def start(self) -> None:
        assert self.change(Transition.TRANSITION_CONFIGURE)
        assert self.change(Transition.TRANSITION_ACTIVATE)

    def close(self) -> None:
        self.node.halt()
        self.executor.shutdown()
        self.node.destroy_node()
        self.other.destroy_node()


@pytest.fixture
def make(bundle: Path) -> Iterator[Callable[..., Graph]]:
    """Makes graphs, and takes them down."""
    rclpy.init()
    graphs: list[Graph] = []

    def made(**parameters: Any) -> Graph:
        graphs.append(Graph(**{"bundle": bundle, **parameters}))
        return graphs[-1]

    yield made
    for graph in graphs:
        graph.close()
    rclpy.shutdown()


def test_it_acts_while_it_is_active_and_stops_safely(make: Callable[..., Graph]) -> None:
    graph = make()
    assert graph.change(Transition.TRANSITION_CONFIGURE) and graph.state() == State.PRIMARY_STATE_INACTIVE
    assert not graph.commands
    assert graph.change(Transition.TRANSITION_ACTIVATE) and graph.state() == State.PRIMARY_STATE_ACTIVE
    graph.until(lambda: len(graph.commands) > 20)
    assert graph.commands[-1] == [1.0, -2.0]
    assert graph.change(Transition.TRANSITION_DEACTIVATE)
    graph.until(lambda: graph.commands[-1] == [0.5, 0.5])
    count = len(graph.commands)
    assert graph.change(Transition.TRANSITION_ACTIVATE)
    graph.until(lambda: len(graph.commands) > count + 5)
    assert graph.change(Transition.TRANSITION_DEACTIVATE) and graph.change(Transition.TRANSITION_CLEANUP)
    assert graph.change(Transition.TRANSITION_CONFIGURE)
    assert graph.change(Transition.TRANSITION_INACTIVE_SHUTDOWN)
    assert graph.state() == State.PRIMARY_STATE_FINALIZED


def test_readings_that_end_deactivate_it(make: Callable[..., Graph]) -> None:
    graph = make(bridge=5, stale=0.05)
    graph.start()
    graph.until(lambda: len(graph.commands) > 10)
    graph.hip = None
    graph.until(lambda: graph.state() == State.PRIMARY_STATE_INACTIVE)
    graph.until(lambda: graph.commands[-1] == [0.5, 0.5])
    graph.until(lambda: any("in a row with a fault" in status.message for status in graph.diagnostics))
    assert graph.diagnostics[-1].level == b"\x02"


def test_what_cannot_be_configured_leaves_it_unconfigured(make: Callable[..., Graph], tmp_path: Path) -> None:
    graph = make(bundle=tmp_path / "none.lram")
    assert not graph.change(Transition.TRANSITION_CONFIGURE)
    assert graph.state() == State.PRIMARY_STATE_UNCONFIGURED


def test_services_begin_episodes_and_swap(make: Callable[..., Graph], bundle: Path) -> None:
    graph = make()
    assert not graph.ask(Trigger, "new_episode").success
    graph.start()
    graph.until(lambda: len(graph.commands) > 5)
    assert graph.ask(Trigger, "new_episode").success and graph.ask(Trigger, "swap").success
    graph.until(lambda: graph.node._session.account.episodes == 2)
    graph.until(lambda: not graph.node._session.is_swapping)
    assert graph.set("bundle", str(bundle)).successful
    count = len(graph.commands)
    graph.until(lambda: len(graph.commands) > count + 20)


def test_a_swap_that_failed_is_told_and_the_parameter_says_what_runs(
    make: Callable[..., Graph], bundle: Path, tmp_path: Path
) -> None:
    graph = make()
    graph.start()
    graph.until(lambda: len(graph.commands) > 5)
    assert graph.set("bundle", str(tmp_path / "none.lram")).successful
    status = graph.diagnosed("none.lram: not swapped: ")
    assert status.level == b"\x01" and {v.key: v.value for v in status.values}["bundle"] == str(bundle)
    graph.until(lambda: graph.node.get_parameter("bundle").value == str(bundle))
    answer = graph.ask(Trigger, "swap")
    assert answer.success and answer.message.startswith(f"{bundle}: ")
    graph.until(lambda: not graph.node._session.is_swapping)
    assert "not swapped" not in graph.diagnosed("active").message
    assert graph.change(Transition.TRANSITION_DEACTIVATE) and graph.change(Transition.TRANSITION_CLEANUP)
    graph.start()


def test_an_error_of_any_kind_is_one_line_in_the_log_and_no_error_processing(
    make: Callable[..., Graph], capfd: pytest.CaptureFixture[str]
) -> None:
    graph = make(action__topic="~/my commands")
    assert not graph.change(Transition.TRANSITION_CONFIGURE)
    assert graph.state() == State.PRIMARY_STATE_UNCONFIGURED and graph.node._session is None
    assert "InvalidTopicNameException: " in capfd.readouterr().err
    assert graph.set("action.topic", "~/commands").successful
    assert graph.change(Transition.TRANSITION_CONFIGURE)
    session = graph.node._session
    usual, session.options = session.options, None
    assert not graph.change(Transition.TRANSITION_ACTIVATE)
    assert graph.state() == State.PRIMARY_STATE_INACTIVE
    assert "AttributeError: " in capfd.readouterr().err
    session.options = usual
    assert graph.change(Transition.TRANSITION_ACTIVATE)
    graph.until(lambda: len(graph.commands) > 5)


def test_rewards_are_kept_for_a_loop_alone(make: Callable[..., Graph]) -> None:
    graph = make(reward__topic="~/reward")
    rewards = graph.other.create_publisher(Float64, "/policy_node/reward", 10)
    graph.start()
    graph.until(lambda: len(graph.commands) > 5 and rewards.get_subscription_count() == 1)
    assert graph.change(Transition.TRANSITION_DEACTIVATE) and graph.node._robot is None
    rewards.publish(Float64(data=1.0))
    graph.until(lambda: bool(graph.diagnosed("inactive")))
    assert graph.state() == State.PRIMARY_STATE_INACTIVE
    assert graph.change(Transition.TRANSITION_ACTIVATE)
    graph.hip = None
    graph.until(lambda: graph.state() == State.PRIMARY_STATE_INACTIVE)
    assert graph.node._robot is None


def test_a_slow_loop_is_deactivated_at_once(make: Callable[..., Graph]) -> None:
    graph = make(rate=0.05)
    graph.start()
    graph.until(lambda: len(graph.commands) == 1)
    assert graph.change(Transition.TRANSITION_DEACTIVATE) and graph.state() == State.PRIMARY_STATE_INACTIVE
    graph.until(lambda: graph.commands == [[1.0, -2.0], [0.5, 0.5]])


def test_the_safe_action_arrives_though_its_publisher_goes(make: Callable[..., Graph]) -> None:
    for _ in range(5):
        graph = make()
        graph.start()
        graph.until(lambda graph=graph: len(graph.commands) > 5)
        graph.node.halt()
        graph.until(lambda graph=graph: graph.commands[-1] == [0.5, 0.5])


def test_parameters_that_take_no_effect_are_refused(make: Callable[..., Graph]) -> None:
    graph = make()
    graph.start()
    result = graph.set("bridge", 3)
    assert not result.successful and result.reason.startswith("bridge: can be set before this node is configured")
    result = graph.set("target_return", 1.0)
    assert not result.successful and result.reason == "target_return: this policy aims at no return"


def test_diagnostics_tell_how_it_goes(make: Callable[..., Graph]) -> None:
    graph = make()
    graph.start()
    graph.until(lambda: any(status.message.startswith("active") for status in graph.diagnostics))
    graph.until(lambda: any({"digest", "missed deadlines"} <= {v.key for v in s.values} for s in graph.diagnostics))
    assert {status.name for status in graph.diagnostics} == {"/policy_node: policy"}


def test_it_goes_by_a_simulations_clock(make: Callable[..., Graph]) -> None:
    graph = make(use_sim_time=True)
    seconds = 100.0

    def tick() -> None:
        nonlocal seconds
        message = Clock()
        message.clock.sec, message.clock.nanosec = int(seconds), int(seconds % 1 * 1e9)
        graph.clock.publish(message)
        graph.executor.spin_once(timeout_sec=0.01)

    assert graph.change(Transition.TRANSITION_CONFIGURE)
    for _ in range(20):
        tick()
    assert graph.change(Transition.TRANSITION_ACTIVATE)
    graph.until(lambda: len(graph.commands) == 1)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        graph.executor.spin_once(timeout_sec=0.01)
    assert len(graph.commands) == 1, "it stands still"
    began = seconds
    while len(graph.commands) < 30:
        seconds += 0.005
        tick()
        assert seconds < began + 10
    assert seconds - began > 0.28
