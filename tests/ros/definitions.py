"""Messages without ROS: classes with the fields of the definitions in `messages/`, and as strict as those of rclpy.

The definitions are those of ros2/common_interfaces at 5283bd97 (Jazzy; the same in Humble at 53761cba) and of
builtin_interfaces in ros2/rcl_interfaces at 003987ec, without their comments.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

MESSAGES = Path(__file__).parent / "messages"
NUMBERS = {
    "bool": (bool, None),
    "byte": (bytes, None),
    "string": (str, None),
    "uint8": (int, (0, 255)),
    "int32": (int, (-(2**31), 2**31 - 1)),
    "uint32": (int, (0, 2**32 - 1)),
    "int64": (int, (-(2**63), 2**63 - 1)),
    "float32": (float, None),
    "float64": (float, None),
}
EMPTY = {"bool": False, "byte": b"\0", "string": "", "float32": 0.0, "float64": 0.0}


class Message:
    """A message; a field that its definition has not cannot be set, nor one of another type."""

    FIELDS: dict[str, str]

    def __init__(self, **fields: Any) -> None:
        for name, kind in self.FIELDS.items():
            object.__setattr__(self, name, _empty(kind))
        for name, value in fields.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.FIELDS:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}")
        kind = self.FIELDS[name]
        if kind.endswith("[]"):
            assert isinstance(value, Sequence) and not isinstance(value, str), f"{name}: expected a sequence"
            for one in value:
                _check(name, kind[:-2], one)
        else:
            _check(name, kind, value)
        object.__setattr__(self, name, value)


@cache
def message(name: str) -> type[Message]:
    """The class of a message, such as ``sensor_msgs/msg/JointState``."""
    package, _, kind = name.split("/")
    fields, constants = {}, {}
    for line in (MESSAGES / package / f"{kind}.msg").read_text(encoding="utf-8").splitlines():
        of, rest = line.split(" ", 1)
        if "=" in rest:
            constant, value = rest.split("=")
            constants[constant] = bytes([int(value)]) if of == "byte" else int(value)
        else:
            fields[rest] = _full(of, package)
    return type(kind, (Message,), {"FIELDS": fields, **constants})


def _full(kind: str, package: str) -> str:
    """Name of a field's type, with its package."""
    if kind.removesuffix("[]") in NUMBERS:
        return kind
    package, _, own = kind.rpartition("/") if "/" in kind else (package, "/", kind)
    return f"{package}/msg/{own}"


def _empty(kind: str) -> Any:
    if kind.endswith("[]"):
        return []
    return message(kind)() if kind not in NUMBERS else EMPTY.get(kind, 0)


def _check(name: str, kind: str, value: Any) -> None:
    if kind not in NUMBERS:
        assert type(value) is message(kind), f"{name}: expected a {kind}, got {value!r}"
        return
    of, bounds = NUMBERS[kind]
    assert type(value) is of, f"{name}: expected a {of.__name__}, got {value!r}"
    assert bounds is None or bounds[0] <= value <= bounds[1], f"{name}: {value} does not fit {kind}"
