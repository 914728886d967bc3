"""Messages to observations and back, over the fields of their definitions."""

from __future__ import annotations

import array
import random
from typing import Any

import numpy as np
import pytest
from lram_ros.inlets import Arrays, Images, Joints, NoReadingError
from lram_ros.outlet import Outlet
from lram_ros.topics import (
    ARRAYS,
    CHOICE,
    FLOAT64S,
    JOINT_STATE,
    OBSERVED,
    POINT,
    SENT,
    TRAJECTORY,
    ActionTopic,
    Element,
)

from lram_export.camera import prepare
from lram_export.spec.images import ATARI, PROCGEN
from lram_export.spec.tensors import TensorSpec
from tests.ros.definitions import message

ELEMENTS = (Element("hip", "position"), Element("knee", "position", 57.29577951308232), Element("hip", "velocity"))
MAKERS = {name: message(name) for name in (*SENT, CHOICE, POINT)}
STAMP = message("builtin_interfaces/msg/Time")(sec=5)


def joint_state(**fields: Any) -> Any:
    return message(JOINT_STATE)(**fields)


def sent(kind: str, *elements: Element, action: Any, seconds: float = 0.02) -> Any:
    tensor = TensorSpec("action", (1, np.size(action)), "int64" if kind == CHOICE else "float32")
    return Outlet(ActionTopic("~/commands", kind, tensor, elements), MAKERS, seconds, lambda: STAMP).message(action)


def test_joints_may_come_in_any_order_and_among_others() -> None:
    numbers = {"wrist": (9.0, 9.0), "hip": (0.5, -2.0), "knee": (np.pi, 0.25)}
    for _ in range(6):
        names = random.sample(sorted(numbers), 3)
        joints = Joints("joint_states", ELEMENTS, (3,))
        given = joint_state(
            name=names, position=[numbers[n][0] for n in names], velocity=[numbers[n][1] for n in names]
        )
        joints.take(given, now=1.0)
        np.testing.assert_allclose(joints.read(1.0, 0.1), [0.5, 180.0, -2.0])


def test_joints_may_come_from_several_publishers() -> None:
    joints = Joints("joint_states", ELEMENTS, (3,))
    joints.take(joint_state(name=["hip"], position=[1.0], velocity=[2.0]), now=1.0)
    with pytest.raises(NoReadingError, match=r"^joint_states: knee/position: no message yet$"):
        joints.read(1.0, 0.1)
    joints.take(joint_state(name=["knee"], position=[0.0]), now=1.05)
    assert joints.read(1.08, 0.1).tolist() == [1.0, 0.0, 2.0]
    joints.take(joint_state(name=["knee"], position=[0.0]), now=1.15)
    with pytest.raises(NoReadingError, match=r"^joint_states: hip/position: 170 ms old, at most 100$"):
        joints.read(1.17, 0.1)


@pytest.mark.parametrize("velocity", [[], [1.0]])
def test_a_field_that_has_not_a_number_for_every_joint_was_not_given(velocity: list[float]) -> None:
    joints = Joints("joint_states", ELEMENTS, (3,))
    joints.take(joint_state(name=["hip", "knee"], position=[1.0, 0.0], velocity=velocity), now=1.0)
    with pytest.raises(NoReadingError, match="hip/velocity: no message yet"):
        joints.read(1.0, 0.1)


def test_what_came_before_the_clock_was_set_back_is_no_reading() -> None:
    joints, numbers = Joints("joint_states", ELEMENTS, (3,)), Arrays("numbers", (1,))
    joints.take(joint_state(name=["hip", "knee"], position=[1.0, 0.0], velocity=[2.0, 0.0]), now=100.0)
    numbers.take(message(FLOAT64S)(data=[1.0]), now=100.0)
    with pytest.raises(NoReadingError, match=r"^joint_states: hip/position: of before the clock was set back$"):
        joints.read(0.5, 0.1)
    joints.take(joint_state(name=["hip"], position=[1.0], velocity=[2.0]), now=0.5)
    with pytest.raises(NoReadingError, match=r"^joint_states: knee/position: of before the clock was set back$"):
        joints.read(0.5, 0.1)
    with pytest.raises(NoReadingError, match=r"^numbers: of before the clock was set back$"):
        numbers.read(0.5, 0.1)
    joints.take(joint_state(name=["knee"], position=[0.0]), now=0.51)
    assert joints.read(0.505, 0.1).tolist() == [1.0, 0.0, 2.0], "one may come while the reading is under way"


def test_what_was_read_does_not_change_with_the_next_message() -> None:
    joints = Joints("joint_states", ELEMENTS[:1], (1,))
    joints.take(joint_state(name=["hip"], position=[1.0]), now=1.0)
    before = joints.read(1.0, 0.1)
    joints.take(joint_state(name=["hip"], position=[2.0]), now=1.0)
    assert (before.tolist(), joints.read(1.0, 0.1).tolist()) == ([1.0], [2.0])


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_is_taken_as_it_is(kind: str) -> None:
    inlet = Arrays("numbers", (2, 2))
    with pytest.raises(NoReadingError, match=r"^numbers: no message yet$"):
        inlet.read(1.0, 0.1)
    code = {"Float32": "f", "Float64": "d", "UInt8": "B", "Int64": "q"}[kind.split("/")[-1].removesuffix("MultiArray")]
    given = message(kind)(data=array.array(code, [7, 1, 2, 3, 4]))
    given.layout.data_offset = 1
    inlet.take(given, now=1.0)
    read = inlet.read(1.09, 0.1)
    assert read.tolist() == [[1, 2], [3, 4]] and read.dtype == np.dtype(code)
    with pytest.raises(NoReadingError, match=r"^numbers: 110 ms old, at most 100$"):
        inlet.read(1.11, 0.1)
    inlet.take(message(kind)(data=array.array(code, [1, 2, 3])), now=2.0)
    with pytest.raises(NoReadingError, match=r"^numbers: expected 4 numbers, got 3$"):
        inlet.read(2.0, 0.1)


@pytest.mark.parametrize(("encoding", "channels"), [("rgb8", 3), ("bgr8", 3), ("rgba8", 4), ("bgra8", 4)])
def test_an_image_is_prepared_as_in_training_whatever_its_encoding(encoding: str, channels: int) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    laid = frame if encoding.startswith("rgb") else frame[..., ::-1]
    pixels = np.full((64, 64, channels), 255, np.uint8)
    pixels[..., :3] = laid
    rows = np.zeros((64, 64 * channels + 5), np.uint8)  # a camera may pad its rows
    rows[:, : 64 * channels] = pixels.reshape(64, -1)
    inlet = Images("camera", PROCGEN)
    inlet.take(
        message("sensor_msgs/msg/Image")(
            height=64, width=64, encoding=encoding, step=rows.shape[1], data=array.array("B", rows.tobytes())
        ),
        now=1.0,
    )
    assert np.array_equal(inlet.read(1.0, 0.1), prepare(frame, PROCGEN, layout="hwc"))
    assert inlet.read(1.0, 0.1) is inlet.read(1.05, 0.1), "prepared once"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"encoding": "16UC1"}, "expected the encoding rgb8 or .* got '16UC1'"),
        ({"step": 10}, "64 rows of 10 bytes, 64 pixels each: does not fit 12288 bytes of rgb8"),
        ({"height": 0, "data": b""}, "does not fit 0 bytes"),
        ({"height": 32, "data": bytes(32 * 192)}, "64 x 64 pixels, since the policy's images were never resized"),
    ],
)
def test_an_image_that_cannot_be_used_is_no_reading(fields: dict[str, Any], said: str) -> None:
    usual = {"height": 64, "width": 64, "step": 192, "encoding": "rgb8", "data": bytes(64 * 192)}
    inlet = Images("camera", PROCGEN)
    inlet.take(message("sensor_msgs/msg/Image")(**{**usual, **fields}), now=1.0)
    with pytest.raises(NoReadingError, match=rf"^camera: .*{said}"):
        inlet.read(1.0, 0.1)


def test_a_grey_image_is_taken_where_the_policy_is_grey() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (210, 160), np.uint8)
    inlet = Images("camera", ATARI)
    image = message("sensor_msgs/msg/Image")(height=210, width=160, step=160, encoding="mono8", data=frame.tobytes())
    inlet.take(image, now=1.0)
    assert np.array_equal(inlet.read(1.0, 0.1), prepare(frame, ATARI))


def test_an_array_is_in_the_units_of_ros_either_way() -> None:
    degrees = 57.29577951308232
    inlet = Arrays("numbers", (2,), (degrees, 1.0))
    inlet.take(message(ARRAYS[0])(data=array.array("f", [np.pi, 2.0])), now=1.0)
    np.testing.assert_allclose(inlet.read(1.0, 0.1), [180.0, 2.0], rtol=1e-6)
    tensor = TensorSpec("action", (1, 2), "float32")
    topic = ActionTopic("~/commands", FLOAT64S, tensor, factors=(degrees, 1000.0))
    command = Outlet(topic, MAKERS, 0.02, lambda: STAMP).message(np.float32([180, 5]))
    np.testing.assert_allclose(command.data, [np.pi, 0.005], rtol=1e-6)


def test_an_action_is_sent_as_an_array() -> None:
    assert sent(FLOAT64S, action=np.float32([0.5, -1])).data == [0.5, -1.0]


def test_a_choice_is_sent_as_a_number() -> None:
    assert sent(CHOICE, action=np.int64(3)).data == 3
    assert sent(CHOICE, action=np.int64([4])).data == 4


def test_joints_are_sent_in_radians_each_in_its_field() -> None:
    state = sent(JOINT_STATE, *ELEMENTS[:2], Element("wheel", "velocity"), action=np.float32([1, 180, 2]))
    assert state.name == ["hip", "knee", "wheel"] and state.header.stamp.sec == 5 and state.effort == []
    np.testing.assert_allclose(state.position, [1, np.pi, np.nan], rtol=1e-6)
    np.testing.assert_allclose(state.velocity, [np.nan, np.nan, 2])


def test_a_trajectory_leads_to_where_the_next_command_is_due() -> None:
    found = sent(TRAJECTORY, *ELEMENTS[:2], action=np.float32([1, 180]), seconds=1.25)
    (point,) = found.points
    assert found.joint_names == ["hip", "knee"] and (found.header.stamp.sec, found.header.stamp.nanosec) == (0, 0)
    assert point.positions == pytest.approx([1.0, np.pi], rel=1e-6) and point.velocities == []
    assert (point.time_from_start.sec, point.time_from_start.nanosec) == (1, 250_000_000)
    effort = sent(TRAJECTORY, Element("hip", "effort"), action=np.float32([2]))
    assert effort.points[0].effort == [2.0] and effort.points[0].positions == []


def test_every_type_that_may_be_told_is_defined() -> None:
    for name in {*OBSERVED, *SENT, CHOICE, POINT}:
        assert message(name)()
