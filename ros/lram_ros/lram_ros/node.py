"""The lifecycle node ``policy_node``. Everything that needs no rclpy is in the modules beside."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Mapping
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock as RosClock
from rclpy.clock import ClockType
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import ok, try_shutdown
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, Float32MultiArray, Float64, Float64MultiArray, Int64, Int64MultiArray, UInt8MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from lram_export.errors import LramError, UsageError, describe
from lram_export.loop.clock import Clock
from lram_ros.inlets import Joints, inlet_of
from lram_ros.outlet import Outlet
from lram_ros.parameters import (
    AT_END,
    PARAMETERS,
    WHILE_ACTIVE,
    Declared,
    Settings,
    settings_of,
    target_return_of,
)
from lram_ros.report import Reporter
from lram_ros.robot import Ports, TopicRobot
from lram_ros.session import Session
from lram_ros.simulated import SimulatedClock
from lram_ros.topics import (
    action_topic,
    declared_for,
    held_topics,
    is_converted,
    observation_topics,
    safe_action_of,
)

TYPES: Mapping[str, type] = {
    "sensor_msgs/msg/JointState": JointState,
    "sensor_msgs/msg/Image": Image,
    "std_msgs/msg/Float32MultiArray": Float32MultiArray,
    "std_msgs/msg/Float64MultiArray": Float64MultiArray,
    "std_msgs/msg/UInt8MultiArray": UInt8MultiArray,
    "std_msgs/msg/Int64MultiArray": Int64MultiArray,
    "std_msgs/msg/Int64": Int64,
    "trajectory_msgs/msg/JointTrajectory": JointTrajectory,
    "trajectory_msgs/msg/JointTrajectoryPoint": JointTrajectoryPoint,
}
LEVELS = (DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR)

READINGS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.BEST_EFFORT,
    durability=DurabilityPolicy.VOLATILE,
)
"""Only the newest counts; any publisher's will do."""
COMMANDS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.VOLATILE,
)
EVENTS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=100,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.VOLATILE,
)
"""Every one of them counts: rewards, ends of episodes."""

SPIN = 0.05
"""Seconds between two looks at whether a signal came."""
ARRIVAL = 0.5
"""Seconds that the last command, which is the safe one, may take to those who are subscribed."""


class PolicyNode(LifecycleNode):  # type: ignore[misc]
    """A bundle, between topics. One loop at a time, in a thread of its own."""

    def __init__(self, **options: Any) -> None:
        """``options`` are those of a Node."""
        super().__init__("policy_node", **options)
        for one in PARAMETERS:
            self._declare(one)
        self._session: Session | None = None
        self._settings: Settings | None = None
        self._robot: TopicRobot | None = None
        self._ports: Ports | None = None
        self._made: list[Callable[[], Any]] = []  # how to take down what configure made, in order
        self._reporter, self._label = Reporter(), "unconfigured"
        self._is_restoring = False  # the parameter `bundle`, which is to say what runs
        self.add_on_set_parameters_callback(self._on_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._every_second = self.create_timer(1.0, self._report, clock=RosClock(clock_type=ClockType.STEADY_TIME))
        self._over = self.create_guard_condition(self._on_over)
        self.create_service(Trigger, "~/new_episode", self._on_new_episode)
        self.create_service(Trigger, "~/swap", self._on_swap)

    # ---- states

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Open the bundle, check it, load and warm up the policy; then the topics."""
        try:
            self._configure()
        except Exception as error:  # rclpy says nothing of what it catches
            self._complain(error)
            self._take_down()
            return TransitionCallbackReturn.FAILURE
        self._label = "inactive"
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let the loop run."""
        result = super().on_activate(state)  # so that its first command is published
        assert self._session is not None and self._ports is not None and self._settings is not None
        session = self._session
        self._robot = TopicRobot(self._ports, session.is_ending, session.begin)
        try:
            session.start(self._robot, self._clock_maker(session), self._over.trigger)
        except Exception as error:  # as above
            self._complain(error)
            self._robot = None
            super().on_deactivate(state)
            return TransitionCallbackReturn.FAILURE
        self._label = "active"
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End the loop, which stops the robot; then nothing is published any more."""
        if not self._stop():
            return TransitionCallbackReturn.ERROR
        self._label, self._robot = "inactive", None  # rewards of now are nobody's
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of the policy and of the topics."""
        if not self._take_down():
            return TransitionCallbackReturn.ERROR
        self._label = "unconfigured"
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the robot, whatever state this node was in."""
        if not self._take_down():
            return TransitionCallbackReturn.ERROR
        self._label = "finalized"
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the robot and begin anew; where the loop does not end, this node ends."""
        if not self._take_down():
            self.get_logger().fatal("the loop does not end: kill this process")
            return TransitionCallbackReturn.FAILURE
        self._label = "unconfigured"
        super().on_error(state)
        return TransitionCallbackReturn.SUCCESS

    def halt(self) -> None:
        """Stop the robot, and let go of the policy; for the end of the process."""
        self._take_down()

    # ---- what they are made of

    def _complain(self, error: Exception) -> None:
        self.get_logger().error(describe(error).removeprefix("--"))

    def _configure(self) -> None:
        settings = self._settings = settings_of(self._values(PARAMETERS))
        session = self._session = Session.open(settings)
        declared = declared_for(session.policy)
        for one in declared:
            if not self.has_parameter(one.name):
                self._declare(one)
        values = self._values(declared)
        observations, action = observation_topics(session.policy, values), action_topic(session.policy, values)
        safe = safe_action_of(action, session.policy, settings.safe_action)
        inlets = {}
        for topic in observations:
            inlet = inlets[topic.name] = inlet_of(topic)
            self._subscribe(TYPES[topic.type], topic.topic, self._taking(inlet), READINGS)
        held = None
        if settings.holds:
            name, elements = held_topics(action, observations, settings.holds, session.policy)
            held = Joints(name, elements, action.tensor.shape[1:])
            self._subscribe(JointState, name, self._taking(held), READINGS)
        if settings.reward_topic:
            self._subscribe(Float64, settings.reward_topic, self._on_reward, EVENTS)
        if settings.done_topic:
            self._subscribe(Bool, settings.done_topic, self._on_done, EVENTS)
        commands = self.create_lifecycle_publisher(TYPES[action.type], action.topic, COMMANDS)
        self._made.append(lambda: self._let_go(commands))
        seconds = 1 / (session.options.rate * session.options.between.ticks)
        outlet = Outlet(action, TYPES, seconds, lambda: self.get_clock().now().to_msg())
        self._ports = Ports(inlets, outlet, commands.publish, self._now, settings.stale, settings.wait, safe, held)
        for topic in observations:
            how = ", converted from ROS's units" if is_converted(topic) else ""
            self.get_logger().info(f"{topic.name}: from {topic.topic}, {topic.type}{how}")
        how = ", converted to ROS's units" if is_converted(action) else ""
        self.get_logger().info(f"{action.tensor.name}: to {action.topic}, {action.type}{how}")

    def _let_go(self, commands: Any) -> None:
        """Destroy the publisher of commands once the last of them arrived, if it does in time."""
        try:
            commands.wait_for_all_acked(Duration(seconds=ARRIVAL))
        except Exception as error:  # not every middleware can tell, none can after a shutdown of ROS
            self.get_logger().debug(describe(error))
        self.destroy_lifecycle_publisher(commands)

    def _taking(self, inlet: Any) -> Callable[[Any], None]:
        return lambda message: inlet.take(message, self._now())

    def _subscribe(self, kind: type, topic: str, callback: Callable[[Any], None], qos: QoSProfile) -> None:
        subscription = self.create_subscription(kind, topic, callback, qos)
        self._made.append(lambda: self.destroy_subscription(subscription))

    def _is_simulated(self) -> bool:
        return bool(self.get_parameter("use_sim_time").value)

    def _now(self) -> float:
        """Seconds, by the clock that the loop goes by: a steady one, or the simulation's."""
        if self._is_simulated():
            return float(self.get_clock().now().nanoseconds * 1e-9)
        return Clock.now()

    def _clock_maker(self, session: Session) -> Callable[[float], Clock] | None:
        if not self._is_simulated():
            return None
        return lambda period: SimulatedClock(period, self._now, session.is_ending)

    def _stop(self) -> bool:
        """End the loop; whether it ended in time."""
        return self._session is None or self._session.stop()

    def _take_down(self) -> bool:
        """End the loop, and let go of all that configure made; whether that could be done."""
        if self._session is not None and not self._session.close():
            return False
        while self._made:
            self._made.pop()()
        self._session = self._settings = self._robot = self._ports = None
        return True

    # ---- what others ask for

    def _on_over(self) -> None:
        """The loop ended; by itself, if this node is still active: then the robot had to be stopped."""
        if self._label == "active" and self._session is not None and not self._session.is_ending():
            self.trigger_deactivate()

    def _on_reward(self, message: Float64) -> None:
        if self._robot is not None:
            self._robot.add_reward(message.data)

    def _on_done(self, message: Bool) -> None:
        if self._robot is not None and self._settings is not None and message.data:
            self._robot.tell(AT_END[self._settings.done_then])

    def _on_new_episode(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._answer(response, lambda session: session.new_episode(), "an episode begins with the next step")

    def _on_swap(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        path = "" if self._session is None else self._session.bundle
        told = f"{path}: is loaded beside the loop; the log and /diagnostics tell when it runs"
        return self._answer(response, lambda session: session.swap(path), told)

    def _answer(self, response: Trigger.Response, do: Callable[[Session], None], told: str) -> Trigger.Response:
        try:
            if self._session is None:
                raise LramError("not configured")
            do(self._session)
        except LramError as error:
            response.success, response.message = False, str(error)
        else:
            response.success, response.message = True, told
        return response

    # ---- parameters

    def _declare(self, declared: Declared) -> None:
        descriptor = ParameterDescriptor(description=declared.description, dynamic_typing=True)
        self.declare_parameter(declared.name, declared.default, descriptor)

    def _values(self, declared: tuple[Declared, ...]) -> dict[str, Any]:
        return {one.name: self.get_parameter(one.name).value for one in declared}

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        try:
            for parameter in parameters:
                self._check_set(parameter)
            for parameter in parameters:
                self._apply(parameter)
        except LramError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _check_set(self, parameter: Parameter) -> None:
        if self._session is None:
            return
        name = parameter.name
        ours = name in {one.name for one in PARAMETERS} or name.startswith(("observation.", "action."))
        if ours and name not in WHILE_ACTIVE and self.has_parameter(name):  # else configure declares it just now
            raise UsageError(f"{name}: can be set before this node is configured, or after its cleanup")
        if parameter.name == "use_sim_time" and self._session.is_running:
            raise UsageError("use_sim_time: can be set while this node is not active")
        if parameter.name == "bundle" and not isinstance(parameter.value, str):
            raise UsageError(f"bundle: expected a text, got {parameter.value!r}")
        if parameter.name == "target_return":
            target_return_of(parameter.value)

    def _apply(self, parameter: Parameter) -> None:
        session = self._session
        if session is None:
            return
        if parameter.name == "target_return":
            session.aim(target_return_of(parameter.value))
        elif parameter.name == "bundle" and not self._is_restoring:
            session.swap(parameter.value)

    def _restore_bundle(self) -> None:
        """The parameter says what runs, also after a swap that failed."""
        session = self._session
        if session is None or session.is_swapping:
            return
        if self.get_parameter("bundle").value != session.bundle:
            self._is_restoring = True
            self.set_parameters([Parameter("bundle", value=session.bundle)])
            self._is_restoring = False

    # ---- diagnostics

    def _report(self) -> None:
        self._restore_bundle()
        row = self._reporter.row(self._session, self._label)
        status = DiagnosticStatus(
            level=LEVELS[row.level],
            name=f"{self.get_fully_qualified_name()}: policy",
            message=row.message,
            hardware_id="",
            values=[KeyValue(key=key, value=value) for key, value in row.values],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


class RosHandler(logging.Handler):
    """Takes what the library logs to the node's log. rclpy wants a place of its own in the code for each level."""

    def __init__(self, node: PolicyNode) -> None:
        super().__init__()
        self._log = node.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        """Write it."""
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            self._log.error(text)
        elif record.levelno >= logging.WARNING:
            self._log.warning(text)
        else:
            self._log.info(text)


def main(args: list[str] | None = None) -> None:
    """Spin until a signal comes; then stop the robot while commands can still be published."""
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda came, _: signals.append(came))
    node = PolicyNode()
    handler, log = RosHandler(node), logging.getLogger("lram_export")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while ok() and not signals:
            executor.spin_once(timeout_sec=SPIN)
    except ExternalShutdownException:
        pass
    finally:
        node.halt()
        log.removeHandler(handler)
        executor.shutdown()
        node.destroy_node()
        try_shutdown()


if __name__ == "__main__":
    main()
