"""One step of the control loop, as it is recorded; and its message: fields, definition, bytes. Free of torch.

A message holds what the loop knew of the step. Fields of several numbers are sequences: of the whole tensor, rows
first, or empty where there was none. Bytes are those of ROS 2 (CDR, little endian), so that tools of others read
them, too.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.spec.interface import actions_of
from lram_export.spec.tensors import StepSpec, TensorSpec

Arrays = Mapping[str, NDArray[Any]]
GIVEN = ("return_to_go", "reward", "is_first")
"""Inputs that no robot reads."""

UNKNOWN = 2**32 - 1
"""In place of a bundle's number: another one took over in the middle of the step."""

TYPE = "lram_msgs/msg/Step"
_HEAD = struct.Struct("<QdddQQI?")
_SCALARS = """\
uint64 step        # of the loop, counted from 0
float64 time       # of the reading, in seconds since the loop began
float64 seconds    # that the policy's step took; NaN: it took none
float64 latency    # seconds from the reading to the first action
uint64 missed      # deadlines so far
uint64 dropped     # steps so far that are not in this file
uint32 bundle      # number of the bundle that ran, as the file's metadata tell
bool stepped       # whether the policy took a step
string fault       # its kind; empty: there was none
string why"""
_ENCAPSULATION = b"\x00\x01\x00\x00"
"""Of CDR, little endian."""

_ROS = {"float32": "float32", "uint8": "uint8", "int64": "int64", "float64": "float64", "bool": "bool"}
_MOST_TEXT = 1000


@dataclass
class FlightStep:
    """One step of the loop.

    Attributes:
        step: its number, from 0.
        time: of its reading, seconds since the loop began.
        seconds: that the policy's step took; NaN where it took none.
        latency: seconds from the reading to the first action that was sent, or not.
        missed: deadlines so far.
        dropped: steps so far that were not recorded.
        bundle: number of the bundle that ran, from 0, whose header has the same; or :data:`UNKNOWN`.
        stepped: whether the policy took a step.
        fault: its kind; "" for none; ``why``: in words.
        reading: what the robot read, by name, where that is not what the step took; else nothing.
        inputs: of the policy's step by name, as the step graph took them; nothing where there was none.
        outputs: the actions it gave, by name, as the robot gets them.
        chosen: an action as the step graph gave it, where its safety held it back; else nothing.
        clamped: by name of an action, which elements a limit clamped at this step; nothing where it clamped none.
        reward: what the step was given, in the environment's units; None: nothing.
        sent: what reached the robot, one action after the other.
        sent_at: when each did, seconds since the loop began.
    """

    step: int
    time: float
    seconds: float = float("nan")
    latency: float = float("nan")
    missed: int = 0
    dropped: int = 0
    bundle: int = 0
    stepped: bool = False
    fault: str = ""
    why: str = ""
    reading: Arrays = field(default_factory=dict)
    inputs: Arrays = field(default_factory=dict)
    outputs: Arrays = field(default_factory=dict)
    chosen: Arrays = field(default_factory=dict)
    clamped: Arrays = field(default_factory=dict)
    reward: NDArray[np.float64] | None = None
    sent: list[NDArray[Any]] = field(default_factory=list)
    sent_at: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """A sequence in a message: the part ``group`` of a step, of the tensor ``name``."""

    group: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    many: bool = False

    @property
    def field(self) -> str:
        """Its name in the definition: ROS 2 wants lower case, and single underscores."""
        words = [word for word in f"{self.group}_{self.name}".lower().split("_") if word]
        return "_".join(words)

    def read(self, view: memoryview, count: int, at: int) -> NDArray[Any]:
        """Its values, of its shape; of many all of them, one after the other.

        Raises:
            ValueError: another number of values than that.
        """
        if count % self.size or (count > self.size and not self.many):
            raise ValueError(f"{self.field}: expected {self.size} numbers, got {count}")
        shape = (count // self.size, *self.shape) if self.many else self.shape
        return np.frombuffer(view, self.dtype, count, at).reshape(shape)

    @property
    def size(self) -> int:
        """Numbers of one."""
        return math.prod(self.shape)


class Messages:
    """Steps of one policy to bytes and back. The layout follows from the specification of its step."""

    def __init__(self, spec: StepSpec, ticks: int = 1) -> None:
        """``ticks``: actions that are sent per step."""
        rows = (spec.batch_size,)
        self._inputs = {tensor.name for tensor in spec.inputs}
        read = [tensor for tensor in spec.inputs if tensor.name not in GIVEN]
        actions = list(actions_of(spec).values())
        self._parts = [
            *(_part("input", tensor) for tensor in spec.inputs),
            *(_part("output", tensor) for tensor in actions),
            *(_part("chosen", tensor) for tensor in actions),
            *(_Part("clamped", tensor.name, tensor.shape, np.dtype(np.bool_)) for tensor in actions),
            *(_part("reading", tensor) for tensor in read),
            _Part("reward", "", rows, np.dtype(np.float64)),
            _Part("sent", spec.outputs[0].name, spec.outputs[0].shape, np.dtype(spec.outputs[0].dtype), many=True),
            _Part("sent_at", "", (), np.dtype(np.float64), many=True),
        ]
        arrays = sum(part.dtype.itemsize * part.size for part in self._parts if not part.many)
        self.most = 2000 + arrays + ticks * (200 + 8 * spec.outputs[0].size)
        """Bytes that a step takes in memory, at most, about."""
        usual = [part for part in self._parts if part.group in ("input", "output", "sent")]
        self.size = 200 + sum(part.dtype.itemsize * part.size for part in usual)
        """Bytes of an ordinary message, about."""

    @property
    def definition(self) -> str:
        """The type, as ROS 2 defines one."""
        names: dict[str, int] = {}
        lines = []
        for part in self._parts:
            seen = names[part.field] = names.get(part.field, 0) + 1
            name = part.field if seen == 1 else f"{part.field}{seen}"  # two that differ in the case of letters
            told = f"of shape {list(part.shape)}" if part.shape else ""
            if part.many:
                told = f"one after the other{', each ' + told if told else ''}"
            lines.append(f"{_ROS[part.dtype.name]}[] {name}  # {told}; or empty")
        return "\n".join([_SCALARS, *lines]) + "\n"

    def encode(self, step: FlightStep) -> bytes:
        """The message of a step."""
        body = bytearray(
            _HEAD.pack(
                step.step, step.time, step.seconds, step.latency, step.missed, step.dropped, step.bundle, step.stepped
            )
        )
        for text in (step.fault, step.why[:_MOST_TEXT]):
            data = text.encode("utf-8", errors="replace") + b"\0"
            _align(body, 4)
            body += struct.pack("<I", len(data)) + data
        found = {
            "input": step.inputs, "output": step.outputs, "chosen": step.chosen, "clamped": step.clamped,
            "reading": step.reading,
        }  # fmt: skip
        for part in self._parts:
            if part.group == "reward":
                values = step.reward
            elif part.group == "sent":
                values = np.concatenate([np.ravel(v) for v in step.sent]) if step.sent else None
            elif part.group == "sent_at":
                values = np.array(step.sent_at)
            else:
                values = found[part.group].get(part.name)
            _append(body, part, values)
        return _ENCAPSULATION + bytes(body)

    def decode(self, data: bytes) -> FlightStep:
        """The step of a message; its arrays are read-only.

        Raises:
            ValueError: it is none of this policy's.
        """
        number, time, seconds, latency, missed, dropped, bundle, stepped = _head(data)
        view, at = memoryview(data)[4:], _HEAD.size
        fault, at = _text(view, at)
        why, at = _text(view, at)
        step = FlightStep(number, time, seconds, latency, missed, dropped, bundle, stepped, fault, why)
        groups: dict[str, dict[str, NDArray[Any]]] = {
            "input": {}, "output": {}, "chosen": {}, "clamped": {}, "reading": {},
        }  # fmt: skip
        step.inputs, step.outputs, step.chosen, step.clamped, step.reading = groups.values()
        for part in self._parts:
            count, at = _count(view, at, part.dtype.itemsize)
            if not count:
                continue
            values = part.read(view, count, at)
            at += count * part.dtype.itemsize
            if part.group in groups:
                groups[part.group][part.name] = values
            elif part.group == "reward":
                step.reward = values
            elif part.group == "sent":
                step.sent = list(values)
            else:
                step.sent_at = values.tolist()
        missing = self._inputs - set(step.inputs)
        if step.stepped and missing:
            raise ValueError(f"step {number}: took no {min(missing)}")
        return step


def head(data: bytes) -> tuple[int, int]:
    """The number of a message's step, and the number of its bundle; raises ValueError where it is none."""
    found = _head(data)
    return found[0], found[6]


def _head(data: bytes) -> tuple[int, float, float, float, int, int, int, bool]:
    if data[:4] != _ENCAPSULATION or len(data) < len(_ENCAPSULATION) + _HEAD.size:
        raise ValueError("not a step of this program")
    return _HEAD.unpack_from(data, len(_ENCAPSULATION))


def _part(group: str, tensor: TensorSpec) -> _Part:
    return _Part(group, tensor.name, tensor.shape, np.dtype(tensor.dtype))


def _align(body: bytearray, size: int) -> None:
    body += bytes(-len(body) % size)


def _append(body: bytearray, part: _Part, values: NDArray[Any] | None) -> None:
    _align(body, 4)
    if values is None or not values.size:
        body += bytes(4)
        return
    body += struct.pack("<I", values.size)
    _align(body, part.dtype.itemsize)
    body += np.ascontiguousarray(values, part.dtype).tobytes()


def _text(view: memoryview, at: int) -> tuple[str, int]:
    size, at = _count(view, at, 1)
    text = bytes(view[at : at + size]).rstrip(b"\0").decode("utf-8", errors="replace")
    return text, at + size


def _count(view: memoryview, at: int, itemsize: int) -> tuple[int, int]:
    """How many items are to come, and where."""
    at += -at % 4
    if at + 4 > len(view):
        raise ValueError("ends too early")
    (count,) = struct.unpack_from("<I", view, at)
    at += 4
    if count:
        at += -at % itemsize
    if at + count * itemsize > len(view):
        raise ValueError("ends too early")
    return count, at
