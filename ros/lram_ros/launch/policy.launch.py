"""The node `policy_node`, configured and activated unless told otherwise.

ros2 launch lram_ros policy.launch.py bundle:=/opt/robot/arm.lram params_file:=arm.yaml
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

ARGUMENTS = {
    "bundle": ("", "folder of the bundle; empty: as the parameters say"),
    "params_file": ("", "YAML with the node's parameters; empty: none"),
    "name": ("policy_node", "name of the node"),
    "namespace": ("", "its namespace"),
    "use_sim_time": ("false", "go by /clock"),
    "autostart": ("true", "configure and activate; false: wait for `ros2 lifecycle set`"),
}


def generate_launch_description() -> LaunchDescription:
    """What `ros2 launch` starts."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_start)])


def _start(context: LaunchContext) -> list:
    said = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    parameters = [said["params_file"]] if said["params_file"] else []
    if said["bundle"]:
        parameters.append({"bundle": said["bundle"]})
    parameters.append({"use_sim_time": said["use_sim_time"].lower() == "true"})
    node = LifecycleNode(
        package="lram_ros",
        executable="policy_node",
        name=said["name"],
        namespace=said["namespace"],
        parameters=parameters,
        output="screen",
    )
    if said["autostart"].lower() != "true":
        return [node]
    configured = OnStateTransition(
        target_lifecycle_node=node,
        start_state="configuring",
        goal_state="inactive",
        entities=[_change(node, Transition.TRANSITION_ACTIVATE)],
    )
    return [node, RegisterEventHandler(configured), _change(node, Transition.TRANSITION_CONFIGURE)]


def _change(node: LifecycleNode, transition: int) -> EmitEvent:
    return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition))
