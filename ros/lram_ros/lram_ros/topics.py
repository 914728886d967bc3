"""Where observations come from and actions go: topics, types of messages, and names of joints, by a bundle's interface.

ROS has radians and metres. Where the interface says degrees or millimetres, numbers are converted on the way, in arrays
as in messages of joints: by its units alone, whether it names joints or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.errors import UsageError
from lram_export.observations import observations_of
from lram_export.policy import Policy
from lram_export.spec.interface import FieldInterface
from lram_export.spec.tensors import TensorSpec
from lram_ros.parameters import Declared

JOINT_STATE = "sensor_msgs/msg/JointState"
IMAGE = "sensor_msgs/msg/Image"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
POINT = "trajectory_msgs/msg/JointTrajectoryPoint"
FLOAT64S = "std_msgs/msg/Float64MultiArray"
CHOICE = "std_msgs/msg/Int64"
ARRAYS = ("std_msgs/msg/Float32MultiArray", FLOAT64S, "std_msgs/msg/UInt8MultiArray", "std_msgs/msg/Int64MultiArray")
OBSERVED = (JOINT_STATE, *ARRAYS, IMAGE)
SENT = (FLOAT64S, JOINT_STATE, TRAJECTORY)

POSITION, VELOCITY, EFFORT = "position", "velocity", "effort"
QUANTITIES = (POSITION, VELOCITY, EFFORT)
"""Of a joint, as the fields of a JointState are called, and the interfaces of ros2_control."""
UNITS = {
    "1": (None, 1.0),
    "normalized": (None, 1.0),
    "rad": (POSITION, 1.0),
    "m": (POSITION, 1.0),
    "deg": (POSITION, 57.29577951308232),
    "mm": (POSITION, 1000.0),
    "rad/s": (VELOCITY, 1.0),
    "m/s": (VELOCITY, 1.0),
    "deg/s": (VELOCITY, 57.29577951308232),
    "N*m": (EFFORT, 1.0),
    "N": (EFFORT, 1.0),
}
"""Unit of an element -> what of a joint it is, and by how much ROS's number is multiplied to have it."""


@dataclass(frozen=True)
class Element:
    """A number of a joint: the policy's is ROS's times ``factor``."""

    joint: str
    quantity: str
    factor: float = 1.0

    def __str__(self) -> str:
        return f"{self.joint}/{self.quantity}"


@dataclass(frozen=True)
class ObservationTopic:
    """Where an observation comes from; ``elements`` where it is of joints, ``factors`` of an array: the policy's
    numbers are ROS's times these."""

    name: str
    topic: str
    type: str
    tensor: TensorSpec
    of: FieldInterface
    elements: tuple[Element, ...] = ()
    factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class ActionTopic:
    """Where the action goes; ``elements`` where they were told, or the message names joints; ``factors`` of an array:
    the policy's numbers are ROS's times these."""

    topic: str
    type: str
    tensor: TensorSpec
    elements: tuple[Element, ...] = ()
    factors: tuple[float, ...] = ()


def is_converted(topic: ObservationTopic | ActionTopic) -> bool:
    """Whether the policy's units are not ROS's."""
    return any(factor != 1 for factor in (*topic.factors, *(element.factor for element in topic.elements)))


def declared_for(policy: Policy) -> tuple[Declared, ...]:
    """The parameters that say where a policy's observations come from and its action goes."""
    found = []
    for tensor in observations_of(policy.spec):
        of = policy.interface.observation.get(tensor.name, FieldInterface())
        kind = _usual(tensor, of)
        topic = {JOINT_STATE: "joint_states", IMAGE: "image_raw"}.get(kind, f"~/{tensor.name}")
        where = f"observation.{tensor.name}"
        found += [
            Declared(f"{where}.topic", topic, "where it comes from"),
            Declared(f"{where}.type", kind, f"{', '.join(OBSERVED)}"),
            Declared(
                f"{where}.elements", [], "JOINT/position, /velocity or /effort of each; empty: the bundle's names"
            ),
        ]
    tensor = policy.spec.outputs[0]
    kind = FLOAT64S if tensor.dtype == "float32" else CHOICE
    return (
        *found,
        Declared("action.topic", "~/commands", "where it goes"),
        Declared("action.type", kind, f"{', '.join(SENT)}; of a choice {CHOICE}"),
        Declared("action.elements", [], "JOINT/position, /velocity or /effort of each; empty: the bundle's names"),
    )


def observation_topics(policy: Policy, values: Mapping[str, Any]) -> tuple[ObservationTopic, ...]:
    """Where each observation comes from; raises UsageError naming the parameter."""
    _check_rows(policy)
    found = []
    for tensor in observations_of(policy.spec):
        where = f"observation.{tensor.name}"
        of = policy.interface.observation.get(tensor.name, FieldInterface())
        topic, kind = _text(values, f"{where}.topic"), _one_of(values, f"{where}.type", OBSERVED)
        if kind == IMAGE and of.image is None:
            raise UsageError(
                f"{where}.type: {IMAGE}: the bundle does not say what its image is; export it with --interface"
            )
        if kind != JOINT_STATE and _names(where, values):
            raise UsageError(f"{where}.elements: only of a {JOINT_STATE}; {where}.type is {kind}")
        elements = _elements(where, values, of, tensor) if kind == JOINT_STATE else ()
        factors = _factors(of, tensor) if kind in ARRAYS else ()
        found.append(ObservationTopic(tensor.name, topic, kind, tensor, of, elements, factors))
    return tuple(found)


def action_topic(policy: Policy, values: Mapping[str, Any]) -> ActionTopic:
    """Where the action goes, which is the policy's first output; raises UsageError naming the parameter."""
    tensor = policy.spec.outputs[0]
    of = policy.interface.action.get(tensor.name, FieldInterface())
    topic = _text(values, "action.topic")
    kind = _one_of(values, "action.type", SENT if tensor.dtype == "float32" else (CHOICE,))
    if kind == CHOICE and tensor.size != 1:
        raise UsageError(f"action.type: {CHOICE} is one number, the policy's action has {tensor.size}")
    told = _names("action", values)
    if kind == CHOICE:
        if told:
            raise UsageError(f"action.elements: not of a choice; action.type is {CHOICE}")
        return ActionTopic(topic, kind, tensor)
    if kind == FLOAT64S:
        elements = _elements("action", values, of, tensor) if told else ()
        return ActionTopic(topic, kind, tensor, elements, _factors(of, tensor))
    elements = _elements("action", values, of, tensor)
    if len({element.joint for element in elements}) < len(elements):
        raise UsageError("action.elements: expected each joint once: a command has one number for each")
    if kind == JOINT_STATE:
        return ActionTopic(topic, kind, tensor, elements)
    quantities = {element.quantity for element in elements}
    if len(quantities) > 1:
        raise UsageError(f"action.elements: a trajectory is of one quantity, got {', '.join(sorted(quantities))}")
    return ActionTopic(topic, kind, tensor, elements)


def held_topics(
    action: ActionTopic, observations: tuple[ObservationTopic, ...], holds: str, policy: Policy
) -> tuple[str, tuple[Element, ...]]:
    """The topic that tells what the robot holds, and what of it the action's elements are.

    Raises:
        UsageError: no observation is of joints, or the action's elements are none, or not of what is held.
    """
    joints = next((one.topic for one in observations if one.type == JOINT_STATE), None)
    if joints is None:
        raise UsageError(f"holds: only where an observation is a {JOINT_STATE}")
    of = policy.interface.action.get(action.tensor.name, FieldInterface())
    if not action.elements and of.elements is None:
        raise UsageError("holds: the bundle does not name the elements of its action; set action.elements")
    named = action.elements or tuple(_element("holds", name, unit) for name, unit in _named(of, action.tensor))
    other = next((one for one in named if one.quantity != holds), None)
    if other is not None:
        raise UsageError(
            f"holds: {holds}, but the action's {other} is no {holds}: bounds would begin at another quantity"
        )
    return joints, named


def safe_action_of(action: ActionTopic, policy: Policy, given: tuple[float, ...]) -> NDArray[np.float32] | None:
    """What a stop sends: what is given, or what the bundle says; None: nothing. Raises UsageError: another size."""
    safety = policy.interface.action.get(action.tensor.name, FieldInterface()).safety
    said: Any = given or (None if safety is None else safety.safe_action)
    if said is None:
        return None
    shape = action.tensor.shape[1:]
    numbers = np.asarray(said, np.float32)
    if numbers.size not in (1, math.prod(shape)):
        raise UsageError(f"safe_action: expected {math.prod(shape)} numbers, got {numbers.size}")
    return np.broadcast_to(numbers.reshape(-1), (math.prod(shape),)).reshape(shape)


def _check_rows(policy: Policy) -> None:
    rows = policy.spec.batch_size
    if rows != 1:
        raise UsageError(f"bundle: {rows} rows; a node drives one robot: export it with --batch 1")


def _usual(tensor: TensorSpec, of: FieldInterface) -> str:
    """The type of message that an observation most likely comes as."""
    if of.image is not None:
        return IMAGE
    try:
        named = _named(of, tensor)
        if named and all(_element("", name, unit) for name, unit in named):
            return JOINT_STATE
    except UsageError:
        pass
    return {"float32": ARRAYS[0], "uint8": ARRAYS[2]}.get(tensor.dtype, ARRAYS[3])


def _elements(where: str, values: Mapping[str, Any], of: FieldInterface, tensor: TensorSpec) -> tuple[Element, ...]:
    """What of which joint each element is, by the parameter, or by the names and units of the interface."""
    given = _names(where, values)
    size = tensor.size // tensor.shape[0]
    if given and len(given) != size:
        raise UsageError(f"{where}.elements: expected {size} names, got {len(given)}")
    named = _named(of, tensor, given or None)
    if not named:
        raise UsageError(f"{where}.elements: the bundle does not name them; expected {size} names, JOINT/position etc.")
    found = tuple(_element(f"{where}.elements", name, unit) for name, unit in named)
    twice = [str(element) for element in found if found.count(element) > 1]
    if twice:
        raise UsageError(f"{where}.elements: {twice[0]} is there twice")
    return found


def _names(where: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    """The parameter, as it was told."""
    given = values[f"{where}.elements"]
    if isinstance(given, (str, bytes)) or not all(isinstance(one, str) for one in given):
        raise UsageError(f"{where}.elements: expected a list of names, got {given!r}")
    return tuple(given)


def _factors(of: FieldInterface, tensor: TensorSpec) -> tuple[float, ...]:
    """By how much ROS's number is multiplied to have each element; 1 where its unit is ROS's, or not known."""
    size, units = tensor.size // tensor.shape[0], of.units or ("1",)
    return tuple(UNITS.get(unit, (None, 1.0))[1] for unit in (units * size if len(units) == 1 else units))


def _named(of: FieldInterface, tensor: TensorSpec, names: tuple[str, ...] | None = None) -> list[tuple[str, str]]:
    """Name and unit of each element; nothing where there are no names."""
    names = names or of.elements
    if names is None:
        return []
    units = of.units or ("1",)
    return list(zip(names, units * len(names) if len(units) == 1 else units, strict=True))


def _element(where: str, name: str, unit: str) -> Element:
    """What of which joint an element is: by what its name ends with, or by its unit."""
    usual, factor = UNITS.get(unit, (None, 0.0))
    joint, _, last = name.rpartition("/")
    if joint and last in QUANTITIES:
        quantity: str | None = last
    else:
        joint, quantity = name, usual
    if quantity is None:
        raise UsageError(f"{where}: {name!r} in {unit}: expected JOINT/position, JOINT/velocity or JOINT/effort")
    if not factor or usual not in (None, quantity):
        raise UsageError(f"{where}: {name!r} is in {unit}, which is no unit of a joint's {quantity}")
    return Element(joint, quantity, factor)


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values[name]
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name}: expected a text, got {value!r}")
    return value


def _one_of(values: Mapping[str, Any], name: str, words: tuple[str, ...]) -> str:
    value = _text(values, name)
    if value not in words:
        raise UsageError(f"{name}: expected {' or '.join(words)}, got {value!r}")
    return value
