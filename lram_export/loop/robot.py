"""The robot's side of the loop: what a class has to offer, and how it is found."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from lram_export.errors import UsageError, describe
from lram_export.observations import Observation

NEW_EPISODE, DONE = "new episode", "done"
EVENTS = (NEW_EPISODE, DONE)
METHODS = ("reset", "observe", "act", "close")
"""What a robot's class must have. ``stop``, ``holds``, ``brought`` and ``event`` it may."""


class Robot(Protocol):
    """What a control loop talks to. Whatever a method raises is a fault of that tick, which is bridged.

    It may have four methods more:

    - ``stop()``, a safe stop, asked for where the loop must not go on, before ``close()``;
    - ``holds()``, asked where an episode begins, and after an action that could not be sent: the action that the robot
      holds, from which an interface's safety bounds the next;
    - ``brought()``, asked before every step: the reward since the last time, of a robot that is told it with the
      observation; what ``act`` returns is added to it;
    - ``event()``, asked after every step: ``"new episode"`` where the robot was put where an episode begins, ``"done"``
      where one has ended and nothing is to be done until the next, else None.
    """

    def reset(self) -> Observation | None:
        """Bring the robot to where an episode begins; its first observation."""

    def observe(self) -> Observation | None:
        """The observation now; None where there is none."""

    def act(self, action: Any) -> Any:
        """Send an action; the reward since the last one, None if it is not known."""

    def close(self) -> None:
        """Stop the motors, and let go of them. Called once, whatever happens."""


def find_robot(name: str) -> type[Robot]:
    """The class ``MODULE:CLASS``, or ``MODULE`` for its class ``Robot``.

    Raises:
        UsageError: no such module or class, or it lacks a method.
    """
    module, _, kind = name.partition(":")
    try:
        found: type[Robot] = getattr(importlib.import_module(module), kind or "Robot")
    except Exception as error:  # importing it runs it
        raise UsageError(f"--robot: {name}: {describe(error)}; expected MODULE:CLASS") from None
    missing = [method for method in METHODS if not callable(getattr(found, method, None))]
    if missing:
        raise UsageError(f"--robot: {name}: has no method {missing[0]}(); a robot has {', '.join(METHODS)}")
    return found


def made(kind: type[Robot], name: str) -> Robot:
    """A robot of a class; raises UsageError where it cannot be made, as where a device is not there."""
    try:
        return kind()
    except Exception as error:
        raise UsageError(f"--robot: {name}: cannot be made: {describe(error)}") from None
