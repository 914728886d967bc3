"""What the node is told: its parameters, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lram_export.errors import UsageError
from lram_export.interpolation import BETWEEN
from lram_export.loop.control import COAST, HOLD
from lram_export.loop.program import Wishes
from lram_export.loop.robot import DONE, NEW_EPISODE

WAIT, BEGIN = "wait", "new_episode"
"""What an episode's end does: nothing until a new one is asked for, or begin the next at once."""
AT_END = {WAIT: DONE, BEGIN: NEW_EPISODE}

MOST_THREADS = 1024


@dataclass(frozen=True)
class Declared:
    """A parameter: its name, what it is unless set, and a line for ``ros2 param describe``."""

    name: str
    default: Any
    description: str


PARAMETERS = (
    Declared("bundle", "", "folder of the bundle; set while active, that bundle takes over between two steps"),
    Declared("target", "", "which of the bundle's artifacts runs; empty: its first whose runtime is installed"),
    Declared("threads", 0, "threads of the runtime; 0: as many as suit the model"),
    Declared("rate", 0.0, "steps per second, Hz; 0: what the bundle says, or 50"),
    Declared("controller_rate", 0.0, "commands per second, Hz, a whole multiple of the rate; 0: the rate"),
    Declared("between", "", "commands between two steps: hold or linear; empty: hold"),
    Declared("bridge", 10, "how many steps in a row may have a fault; at the next the robot is stopped"),
    Declared(
        "by", COAST, "at a fault: coast (step on over the last good reading) or hold (send the last action again)"
    ),
    Declared("frozen", 0, "how many readings in a row may be the same to the bit; 0: any number"),
    Declared("stale", 0.1, "seconds after which a message that came is no reading any more"),
    Declared("wait", 5.0, "seconds that the first messages of an episode may take"),
    Declared("target_return", math.nan, "return to aim at from the next episode on; NaN: the bundle's"),
    Declared("safe_action", [], "the action that a stop sends, as the policy gives one; empty: the bundle's, if any"),
    Declared(
        "holds", "", "position, velocity or effort: what the joints hold where an episode begins; empty: not known"
    ),
    Declared("record", "", "file or folder of flights, written step by step; empty: none"),
    Declared("priority", 0, "real-time priority of the loop's thread, 1 to 99; 0: none"),
    Declared("cpu", -1, "core of the loop's thread; -1: any"),
    Declared("if_permitted", False, "go on without a priority that is not allowed here"),
    Declared("reward.topic", "", "std_msgs/msg/Float64, added up from step to step; empty: there is none"),
    Declared("done.topic", "", "std_msgs/msg/Bool, true where an episode has ended; empty: there is none"),
    Declared("done.then", WAIT, "at its end: wait for the service new_episode, or begin a new_episode at once"),
)
"""Those of every node; a bundle's topics are in :mod:`lram_ros.topics`."""

WHILE_ACTIVE = ("bundle", "target_return", "use_sim_time")
"""What may be set after the node was configured."""


@dataclass(frozen=True)
class Settings:
    """The parameters of :data:`PARAMETERS`, checked; what is not set is None, or empty."""

    wishes: Wishes
    stale: float
    wait: float
    target_return: float | None
    safe_action: tuple[float, ...]
    holds: str
    reward_topic: str
    done_topic: str
    done_then: str


def settings_of(values: Mapping[str, Any]) -> Settings:
    """Check what the node was told.

    Raises:
        UsageError: naming the parameter, what was expected and what came.
    """
    read = _Reader(values)
    bundle = read.text("bundle")
    if not bundle:
        raise UsageError("bundle: not set; expected the folder of a bundle")
    rate, controller_rate = read.number("rate"), read.number("controller_rate")
    between = read.one_of("between", ("", *BETWEEN))
    if between and not controller_rate:
        raise UsageError("between: only with controller_rate")
    cpu = read.whole("cpu", least=-1)
    wishes = Wishes(
        bundle=Path(bundle),
        robot="ROS",  # no rehearsal: it loops until it is deactivated
        target=read.text("target") or None,
        threads=read.whole("threads", MOST_THREADS) or None,
        rate=rate or None,
        controller_rate=controller_rate or None,
        between=between or None,
        bridge=read.whole("bridge"),
        by=read.one_of("by", (COAST, HOLD)),
        frozen=read.whole("frozen"),
        record=Path(record) if (record := read.text("record")) else None,
        priority=read.whole("priority", 99) or None,
        cpu=None if cpu < 0 else cpu,
        if_permitted=read.one_of_two("if_permitted"),
    )
    return Settings(
        wishes,
        stale=read.seconds("stale"),
        wait=read.seconds("wait"),
        target_return=target_return_of(values["target_return"]),
        safe_action=read.numbers("safe_action"),
        holds=read.one_of("holds", ("", "position", "velocity", "effort")),
        reward_topic=read.text("reward.topic"),
        done_topic=read.text("done.topic"),
        done_then=read.one_of("done.then", (WAIT, BEGIN)),
    )


def target_return_of(value: Any) -> float | None:
    """The return to aim at; None for the bundle's. Raises UsageError where it is no number, or infinite."""
    found = _number("target_return", value, "a number, or NaN for the bundle's")
    if math.isinf(found):
        raise UsageError(f"target_return: expected a number, or NaN for the bundle's, got {value}")
    return None if math.isnan(found) else found


class _Reader:
    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def text(self, name: str) -> str:
        value = self._values[name]
        if not isinstance(value, str):
            raise UsageError(f"{name}: expected a text, got {value!r}")
        return value

    def one_of(self, name: str, words: Sequence[str]) -> str:
        value = self.text(name)
        if value not in words:
            raise UsageError(f"{name}: expected {' or '.join(filter(None, words))}, got {value!r}")
        return value

    def number(self, name: str) -> float:
        value = _number(name, self._values[name], "a number, 0 or more")
        if not 0 <= value < math.inf:
            raise UsageError(f"{name}: expected a number, 0 or more, got {value:g}")
        return value

    def seconds(self, name: str) -> float:
        value = self.number(name)
        if not value:
            raise UsageError(f"{name}: expected seconds, more than 0, got {value:g}")
        return value

    def one_of_two(self, name: str) -> bool:
        value = self._values[name]
        if not isinstance(value, bool):
            raise UsageError(f"{name}: expected true or false, got {value!r}")
        return value

    def whole(self, name: str, most: int = 1_000_000_000, least: int = 0) -> int:
        value = self._values[name]
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise UsageError(f"{name}: expected a whole number, {least} to {most}, got {value!r}")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        value = self._values[name]
        if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
            raise UsageError(f"{name}: expected a list of numbers, got {value!r}")
        found = tuple(_number(name, one, "a list of numbers") for one in value)
        if not all(map(math.isfinite, found)):
            raise UsageError(f"{name}: expected finite numbers, got {list(found)}")
        return found


def _number(name: str, value: Any, expected: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise UsageError(f"{name}: expected {expected}, got {value!r}")
    return float(value)
