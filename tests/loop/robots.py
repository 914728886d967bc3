"""A policy, a robot and a clock of which a test says everything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from lram_export import StepPolicy
from lram_export.interpolation import Between
from lram_export.loop.control import LoopOptions
from lram_export.spec.interface import FieldInterface, Interface, Limits, Safety

RATE = 50.0
NAN = np.float32([np.nan, 0.0])


class Follower(torch.nn.Module):
    """Does what it observes; its state counts its steps."""

    def forward(self, observation: Any, count: Any) -> Any:
        return observation + 0.0, count + 1.0


def follower(most: float = 8.0, safety: Safety | None = None) -> StepPolicy:
    seen = FieldInterface(elements=("hip", "knee"), limits=Limits(-8.0, (most, 100.0)))
    done = FieldInterface(limits=Limits(-50.0, 50.0), safety=safety)
    interface = Interface(RATE, {"observation": seen}, {"action": done})
    return StepPolicy(Follower(), observation=2, action=2, state={"count": 1}, interface=interface)


class FakeTime:
    """Time that passes in a loop's sleep alone, and where a test lets it."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Scripted:
    """A robot that reads what a test says, in its order: observations, None, or what is raised; then ends the loop.

    Attributes:
        sent: (milliseconds since the start, action).
        calls: what was asked of it beside readings and actions, in order.
    """

    def __init__(self, time: FakeTime, readings: Iterable[Any], events: Iterable[Any] = ()) -> None:
        self._time, self._readings, self._events = time, iter(readings), iter(events)
        self.sent: list[tuple[int, list[float]]] = []
        self.calls: list[str] = []
        self.reward: Any = None
        self.delays: dict[int, float] = {}
        self.failing: set[int] = set()
        self.end = lambda: None

    def reset(self) -> Any:
        self.calls.append("reset")
        return self.observe()

    def observe(self) -> Any:
        try:
            reading = next(self._readings)
        except StopIteration:
            self.end()
            return None
        if isinstance(reading, BaseException):
            raise reading
        return reading if reading is None else np.float32(reading)

    def act(self, action: Any) -> Any:
        tick = len(self.sent)
        self._time.now += self.delays.get(tick, 0.0)
        self.sent.append((round(1000 * (self._time.now - 100)), np.asarray(action).tolist()))
        if tick in self.failing:
            raise OSError("bus is busy")
        return self.reward

    def event(self) -> Any:
        event = next(self._events, None)
        if isinstance(event, BaseException):
            raise event
        return event

    def stop(self) -> None:
        self.calls.append("stop")

    def close(self) -> None:
        self.calls.append("close")

    @property
    def actions(self) -> list[float]:
        """The first element of every action."""
        return [action[0] for _, action in self.sent]


def options(**said: Any) -> LoopOptions:
    return LoopOptions(**{"rate": RATE, "between": Between(), "bridge": 3, **said})
