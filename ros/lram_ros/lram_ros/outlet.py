"""Messages of actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lram_ros.topics import CHOICE, JOINT_STATE, POINT, TRAJECTORY, ActionTopic, Element

POINT_FIELDS = {"position": "positions", "velocity": "velocities", "effort": "effort"}
"""Of a JointTrajectoryPoint."""

Makers = Mapping[str, Callable[[], Any]]
"""Full name of a message's type -> what makes an empty one."""


class Outlet:
    """Makes a command of an action."""

    def __init__(self, topic: ActionTopic, makers: Makers, seconds: float, stamp: Callable[[], Any]) -> None:
        """``seconds`` is the time until the next command, ``stamp`` the time now as a message has it."""
        self._type, self._elements = topic.type, topic.elements
        self._factors = np.array(topic.factors) if topic.factors else np.ones(1)
        self._makers, self._seconds, self._stamp = makers, seconds, stamp

    def message(self, action: Any) -> Any:
        """A new message with an action as the policy gives one."""
        message = self._makers[self._type]()
        if self._type == CHOICE:
            message.data = int(np.asarray(action).reshape(()))
            return message
        numbers = np.asarray(action, np.float64).reshape(-1)
        if self._type == JOINT_STATE:
            self._fill_joints(message, numbers.tolist())
        elif self._type == TRAJECTORY:
            self._fill_trajectory(message, numbers.tolist())
        else:
            message.data = (numbers / self._factors).tolist()
        return message

    def _fill_joints(self, message: Any, numbers: list[float]) -> None:
        """One array for each quantity that is commanded, with NaN for the joints that are commanded otherwise."""
        message.header.stamp = self._stamp()
        message.name = [element.joint for element in self._elements]
        for quantity in {element.quantity for element in self._elements}:
            values = [
                _ros(number, element) if element.quantity == quantity else float("nan")
                for number, element in zip(numbers, self._elements, strict=True)
            ]
            setattr(message, quantity, values)

    def _fill_trajectory(self, message: Any, numbers: list[float]) -> None:
        """One point, where the next command is due; without a stamp it starts when it arrives."""
        message.joint_names = [element.joint for element in self._elements]
        point = self._makers[POINT]()
        values = [_ros(number, element) for number, element in zip(numbers, self._elements, strict=True)]
        setattr(point, POINT_FIELDS[self._elements[0].quantity], values)
        point.time_from_start.sec = int(self._seconds)
        point.time_from_start.nanosec = round(1e9 * (self._seconds - int(self._seconds))) % 1_000_000_000
        message.points = [point]


def _ros(number: float, element: Element) -> float:
    return number / element.factor
