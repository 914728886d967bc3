"""What the node is told: parameters, topics, types of messages, names of joints."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lram_ros.parameters import PARAMETERS, settings_of
from lram_ros.topics import (
    ActionTopic,
    Element,
    ObservationTopic,
    action_topic,
    declared_for,
    held_topics,
    is_converted,
    observation_topics,
    safe_action_of,
)

from lram_export import ExportOptions, LramError, StepPolicy, export_bundle, load_policy
from lram_export.policy import Policy
from lram_export.spec.images import PROCGEN
from lram_export.spec.interface import FieldInterface, Interface
from lram_export.step_module.policy import Field
from tests.ros.arms import arm, values

CONFIG = Path(__file__).parents[2] / "ros/lram_ros/config"


@pytest.fixture(scope="module")
def policy(bundle: Path) -> Policy:
    return load_policy(bundle)


def topics(policy: Policy, **told: Any) -> tuple[tuple[ObservationTopic, ...], ActionTopic]:
    declared = {p.name: p.default for p in declared_for(policy)}
    said = declared | {name.replace("__", "."): told[name] for name in told}
    assert set(said) == set(declared)
    return observation_topics(policy, said), action_topic(policy, said)


def test_what_is_not_set_is_what_the_command_line_does() -> None:
    settings = settings_of(values(bundle="arm.lram"))
    wishes = settings.wishes
    assert (wishes.bundle, wishes.bridge, wishes.by, wishes.frozen, wishes.steps) == (
        Path("arm.lram"),
        10,
        "coast",
        0,
        0,
    )
    assert {wishes.target, wishes.threads, wishes.rate, wishes.controller_rate, wishes.between} == {None}
    assert settings.target_return is None and settings.safe_action == ()


def test_numbers_may_be_whole() -> None:
    settings = settings_of(values(bundle="a", rate=50, stale=1, target_return=-3, safe_action=[1, 2.5]))
    assert (settings.wishes.rate, settings.stale, settings.target_return) == (50.0, 1.0, -3.0)
    assert settings.safe_action == (1.0, 2.5)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("bundle", "", "bundle: not set; expected the folder of a bundle"),
        ("bundle", 3, "bundle: expected a text, got 3"),
        ("rate", -1.0, "rate: expected a number, 0 or more, got -1"),
        ("rate", math.nan, "rate: expected a number, 0 or more, got nan"),
        ("rate", "fast", "rate: expected a number, 0 or more, got 'fast'"),
        ("threads", 1.5, "threads: expected a whole number, 0 to 1024, got 1.5"),
        ("bridge", True, "bridge: expected a whole number, 0 to 1000000000, got True"),
        ("by", "wait", "by: expected coast or hold, got 'wait'"),
        ("between", "linear", "between: only with controller_rate"),
        ("between", "cubic", "between: expected hold or linear, got 'cubic'"),
        ("stale", 0.0, "stale: expected seconds, more than 0, got 0"),
        ("target_return", math.inf, "target_return: expected a number, or NaN for the bundle's, got inf"),
        ("safe_action", 0.5, "safe_action: expected a list of numbers, got 0.5"),
        ("safe_action", [math.nan], "safe_action: expected finite numbers, got [nan]"),
        ("holds", "torque", "holds: expected position or velocity or effort, got 'torque'"),
        ("if_permitted", 1, "if_permitted: expected true or false, got 1"),
        ("cpu", -2, "cpu: expected a whole number, -1 to 1000000000, got -2"),
        ("done.then", "stop", "done.then: expected wait or new_episode, got 'stop'"),
    ],
)
def test_what_no_parameter_can_be_is_one_line_that_names_it(name: str, value: Any, said: str) -> None:
    with pytest.raises(LramError, match=f"^{re.escape(said)}$"):
        settings_of(values(bundle="a") | {name: value})


def test_every_parameter_says_what_it_is() -> None:
    assert all(parameter.description for parameter in PARAMETERS)


def test_the_interface_says_which_joints_are_observed(policy: Policy) -> None:
    (seen,), action = topics(policy)
    assert (seen.topic, seen.type) == ("joint_states", "sensor_msgs/msg/JointState")
    assert seen.elements == (Element("hip", "position"), Element("knee", "velocity"))
    assert (action.topic, action.type, action.elements) == ("~/commands", "std_msgs/msg/Float64MultiArray", ())


def test_other_names_and_types_may_be_told(policy: Policy) -> None:
    (seen,), action = topics(
        policy,
        observation__observation__elements=["left/hip/position", "left/knee"],
        action__type="trajectory_msgs/msg/JointTrajectory",
    )
    assert seen.elements == (Element("left/hip", "position"), Element("left/knee", "velocity"))
    assert action.elements == (Element("hip", "position"), Element("knee", "position"))
    (array,), _ = topics(policy, observation__observation__type="std_msgs/msg/Float32MultiArray")
    assert array.elements == ()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"observation__observation__type": "odometry"}, "observation.observation.type: expected sensor_msgs/"),
        ({"observation__observation__type": "sensor_msgs/msg/Image"}, "the bundle does not say what its image is"),
        ({"observation__observation__topic": ""}, "observation.observation.topic: expected a text, got ''"),
        ({"observation__observation__elements": ["hip"]}, "observation.observation.elements: expected 2 names, got 1"),
        ({"observation__observation__elements": ["a/position", "a/position"]}, "'a/position' is in rad/s, which is no"),
        ({"action__elements": ["hip"]}, "action.elements: expected 2 names, got 1"),
        ({"action__elements": "hip"}, "action.elements: expected a list of names, got 'hip'"),
        ({"action__elements": ["hip", "hip"]}, "action.elements: hip/position is there twice"),
        (
            {
                "observation__observation__type": "std_msgs/msg/Float64MultiArray",
                "observation__observation__elements": ["hip", "knee"],
            },
            "observation.observation.elements: only of a sensor_msgs/msg/JointState; observation.observation.type is",
        ),
        ({"action__type": "std_msgs/msg/Int64"}, "action.type: expected std_msgs/msg/Float64MultiArray or"),
        (
            {"action__type": "sensor_msgs/msg/JointState", "action__elements": ["hip", "hip"]},
            "action.elements: hip/position is there twice",
        ),
    ],
)  # fmt: skip
def test_what_no_topic_can_be_is_one_line_that_names_the_parameter(
    policy: Policy, told: dict[str, Any], said: str
) -> None:
    with pytest.raises(LramError, match=re.escape(said)):
        topics(policy, **told)


def test_what_the_joints_hold_is_read_from_where_they_are_observed(policy: Policy) -> None:
    seen, action = topics(policy)
    assert held_topics(action, seen, "position", policy) == (
        "joint_states",
        (Element("hip", "position"), Element("knee", "position")),
    )
    arrays, action = topics(policy, observation__observation__type="std_msgs/msg/Float32MultiArray")
    with pytest.raises(LramError, match=r"^holds: only where an observation is a sensor_msgs/msg/JointState$"):
        held_topics(action, arrays, "position", policy)


def test_what_is_told_of_an_array_is_used(policy: Policy) -> None:
    seen, action = topics(policy, action__elements=["knee/position", "hip"])
    expected = (Element("knee", "position"), Element("hip", "position"))
    assert action.type == "std_msgs/msg/Float64MultiArray" and action.elements == expected
    assert held_topics(action, seen, "position", policy)[1] == expected
    with pytest.raises(LramError, match=r"^holds: effort, but the action's knee/position is no effort"):
        held_topics(action, seen, "effort", policy)


def test_an_arm_in_degrees_is_driven_in_radians(tmp_path: Path) -> None:
    with exported(arm(units=("deg",), elements=None), tmp_path / "degrees.lram") as policy:
        _, action = topics(policy)
        assert action.factors == pytest.approx([180 / math.pi] * 2) and is_converted(action)
        seen, action = topics(policy, action__elements=["hip", "knee"])
        assert action.elements == held_topics(action, seen, "position", policy)[1]
        assert [element.factor for element in action.elements] == pytest.approx([180 / math.pi] * 2)
        with pytest.raises(
            LramError, match=r"^action.elements: 'hip/velocity' is in deg, which is no unit of a joint's"
        ):
            topics(policy, action__elements=["hip/velocity", "knee"])


def test_the_example_of_an_arm_is_understood(tmp_path: Path) -> None:
    import torch
    import yaml

    names, units = ("hip", "knee", "ankle"), ("rad", "rad", "rad/s")
    seen, done = FieldInterface(elements=names, units=units), FieldInterface(elements=names, units=("rad",))
    interface = Interface(50.0, {"observation": seen}, {"action": done})
    three = StepPolicy(torch.nn.Identity(), observation=3, action=3, interface=interface)
    told = flat(yaml.safe_load((CONFIG / "arm.yaml").read_text(encoding="utf-8"))["/**"]["ros__parameters"])
    with exported(three, tmp_path / "arm.lram") as policy:
        settings = settings_of(values() | {name: told[name] for name in told if name in values()})
        of_topics = {name: value for name, value in told.items() if name not in values()}
        seen_topics, action = topics(policy, **of_topics)
        held = held_topics(action, seen_topics, settings.holds, policy)
        assert held == ("/joint_states", tuple(Element(name, "position") for name in names))
        assert safe_action_of(action, policy, settings.safe_action) is not None


def flat(parameters: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Names with dots, as the node has them."""
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return found


def test_a_stop_sends_what_is_told_or_what_the_bundle_says(policy: Policy) -> None:
    _, action = topics(policy)
    found = [safe_action_of(action, policy, given) for given in ((), (1.0,), (1.0, 2.0))]
    assert [None if one is None else one.tolist() for one in found] == [[0.5, 0.5], [1.0, 1.0], [1.0, 2.0]]
    with pytest.raises(LramError, match=r"^safe_action: expected 2 numbers, got 3$"):
        safe_action_of(action, policy, (1.0, 2.0, 3.0))


def exported(policy: StepPolicy, path: Path, batch: int = 1) -> Policy:
    export_bundle(
        policy, None, path, ExportOptions(("onnxruntime",), report=False, reference_steps=10, batch_size=batch)
    )
    return load_policy(path)


def test_images_and_several_observations_have_topics_of_their_own(tmp_path: Path) -> None:
    import torch

    class Both(torch.nn.Module):
        def forward(self, camera: Any, depth: Any) -> Any:
            return camera.float().mean(dim=(1, 2, 3))[:, None] + depth.sum(dim=1, keepdim=True)

    both = StepPolicy(
        Both(),
        observation={"camera": Field((3, 64, 64), "uint8"), "depth": 2},
        action=1,
        interface=Interface(observation={"camera": FieldInterface(image=PROCGEN)}),
    )
    with exported(both, tmp_path / "both.lram") as policy:
        camera, depth = topics(policy)[0]
        assert (camera.topic, camera.type) == ("image_raw", "sensor_msgs/msg/Image")
        assert (depth.topic, depth.type) == ("~/depth", "std_msgs/msg/Float32MultiArray")
        with pytest.raises(LramError, match=r"^observation.depth.elements: the bundle does not name them"):
            topics(policy, observation__depth__type="sensor_msgs/msg/JointState")
        with pytest.raises(LramError, match=r"^holds: the bundle does not name the elements of its action"):
            told = {
                "observation__depth__type": "sensor_msgs/msg/JointState",
                "observation__depth__elements": ["a/position", "b/position"],
            }
            seen, action = topics(policy, **told)
            held_topics(action, seen, "position", policy)
        seen, action = topics(policy, **told, action__elements=["c/position"])
        assert held_topics(action, seen, "position", policy) == ("~/depth", (Element("c", "position"),))
        with pytest.raises(LramError, match=r"^action.elements: 'nonsense' in 1: expected JOINT/position"):
            topics(policy, action__elements=["nonsense"])


def test_a_node_drives_one_robot(tmp_path: Path) -> None:
    with (
        exported(arm(), tmp_path / "two.lram", batch=2) as policy,
        pytest.raises(LramError, match=r"^bundle: 2 rows; a node drives one robot: export it with --batch 1$"),
    ):
        topics(policy)


def test_degrees_become_radians() -> None:
    assert Element("hip", "position", 57.29577951308232).factor * np.pi == pytest.approx(180)
