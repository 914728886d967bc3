"""Observations of messages. The executor's thread gives messages, the loop's thread reads; neither waits for the other
longer than a copy of a few numbers takes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lram_export.camera import prepare
from lram_export.errors import LramError
from lram_export.spec.images import ImageSpec
from lram_ros.topics import IMAGE, JOINT_STATE, QUANTITIES, Element, ObservationTopic

ENCODINGS = {"rgb8": ("rgb", 3), "bgr8": ("bgr", 3), "rgba8": ("rgb", 4), "bgra8": ("bgr", 4), "mono8": ("rgb", 1)}
"""Of a sensor_msgs/Image -> order of its colours, and how many channels; those of 8 bits."""


class NoReadingError(LramError):
    """A message is missing, too old, or not what was expected; which, in one line."""


class Inlet(Protocol):
    """Makes an observation of messages."""

    def take(self, message: Any, now: float) -> None:
        """A message came, at this time in seconds. Raises nothing: what is wrong with it is said when it is read."""

    def read(self, now: float, stale: float) -> NDArray[Any]:
        """The observation, without rows.

        Raises:
            NoReadingError: no message, none in the last ``stale`` seconds, or not what was expected. One that came
                more than ``stale`` seconds from now is of before the clock was set back.
        """


def inlet_of(topic: ObservationTopic) -> Inlet:
    """What reads an observation."""
    shape = topic.tensor.shape[1:]
    if topic.type == JOINT_STATE:
        return Joints(topic.topic, topic.elements, shape)
    if topic.type == IMAGE:
        assert topic.of.image is not None
        return Images(topic.topic, topic.of.image)
    return Arrays(topic.topic, shape, topic.factors)


class Joints:
    """From JointStates: joints in any order, others among them, or a part of them from each of many publishers."""

    def __init__(self, topic: str, elements: Iterable[Element], shape: tuple[int, ...]) -> None:
        self._topic, self._elements, self._shape = topic, tuple(elements), shape
        self._values = np.zeros(len(self._elements))
        self._came = np.full(len(self._elements), -math.inf)
        self._factors = np.array([element.factor for element in self._elements])
        self._places: dict[tuple[str, ...], list[tuple[str, NDArray[np.intp], NDArray[np.intp]]]] = {}
        self._lock = Lock()

    def take(self, message: Any, now: float) -> None:
        """Keep the numbers of our joints; a field that has not one for every name was not given."""
        names = tuple(message.name)
        for quantity, places, sources in self._found(names):
            given = getattr(message, quantity)
            if len(given) == len(names):
                numbers = np.asarray(given, np.float64)[sources] * self._factors[places]
                with self._lock:
                    self._values[places], self._came[places] = numbers, now

    def read(self, now: float, stale: float) -> NDArray[Any]:
        """The elements in their order, float64."""
        with self._lock:
            values, came = self._values.copy(), self._came.copy()
        worst = int(np.abs(now - came).argmax())
        _check_age(f"{self._topic}: {self._elements[worst]}", float(came[worst]), now, stale)
        return values.reshape(self._shape)

    def _found(self, names: tuple[str, ...]) -> list[tuple[str, NDArray[np.intp], NDArray[np.intp]]]:
        """Of messages with these names: for each field, places of our elements, and where their numbers are."""
        found = self._places.get(names)
        if found is None:
            at = {name: i for i, name in enumerate(names)}
            found = []
            for quantity in QUANTITIES:
                pairs = [
                    (i, at[e.joint]) for i, e in enumerate(self._elements) if e.quantity == quantity and e.joint in at
                ]
                if pairs:
                    places, sources = np.array(pairs, np.intp).T
                    found.append((quantity, places, sources))
            if len(self._places) < 64:  # as many publishers; names that change all the time are not kept
                self._places[names] = found
        return found


class Arrays:
    """From multi-arrays: the numbers in C order, each times its factor."""

    def __init__(self, topic: str, shape: tuple[int, ...], factors: tuple[float, ...] = ()) -> None:
        self._topic, self._shape = topic, shape
        self._factors = np.array(factors) if any(factor != 1 for factor in factors) else None
        self._last: tuple[Any, float] = (None, -math.inf)

    def take(self, message: Any, now: float) -> None:
        """Keep it."""
        self._last = (message, now)

    def read(self, now: float, stale: float) -> NDArray[Any]:
        """Numbers of the message's type, or float64 where they are converted."""
        message, came = self._last
        _check_age(self._topic, came, now, stale)
        values = np.asarray(message.data)[message.layout.data_offset :]
        if values.size != math.prod(self._shape):
            raise NoReadingError(f"{self._topic}: expected {math.prod(self._shape)} numbers, got {values.size}")
        return (values if self._factors is None else values * self._factors).reshape(self._shape)


class Images:
    """From a camera: cropped, resized and laid out as in training."""

    def __init__(self, topic: str, image: ImageSpec) -> None:
        self._topic, self._image = topic, image
        self._last: tuple[Any, float] = (None, -math.inf)
        self._prepared: tuple[Any, NDArray[np.uint8] | None] = (None, None)

    def take(self, message: Any, now: float) -> None:
        """Keep it."""
        self._last = (message, now)

    def read(self, now: float, stale: float) -> NDArray[Any]:
        """The image; prepared once for each message."""
        message, came = self._last
        _check_age(self._topic, came, now, stale)
        if self._prepared[0] is not message:
            self._prepared = (message, self._prepare(message))
        image = self._prepared[1]
        assert image is not None
        return image

    def _prepare(self, message: Any) -> NDArray[np.uint8]:
        if message.encoding not in ENCODINGS:
            raise NoReadingError(
                f"{self._topic}: expected the encoding {' or '.join(ENCODINGS)}, got {message.encoding!r}"
            )
        colour, channels = ENCODINGS[message.encoding]
        rows, columns, step = message.height, message.width, message.step
        data = np.frombuffer(message.data, np.uint8)
        if data.size != rows * step or step < columns * channels or not data.size:
            said = f"{rows} rows of {step} bytes, {columns} pixels each"
            raise NoReadingError(f"{self._topic}: {said}: does not fit {data.size} bytes of {message.encoding}")
        frame = data.reshape(rows, step)[:, : columns * channels].reshape(rows, columns, channels)
        try:
            return prepare(frame, self._image, colour=colour, layout="hwc", drop_alpha=True)
        except ValueError as error:
            raise NoReadingError(f"{self._topic}: {error}") from None


def _check_age(what: str, came: float, now: float, stale: float) -> None:
    if came == -math.inf:
        raise NoReadingError(f"{what}: no message yet")
    if came - now > stale:  # not any that came after now: one may come between the look at the clock and this
        raise NoReadingError(f"{what}: of before the clock was set back")
    if now - came > stale:
        raise NoReadingError(f"{what}: {1000 * (now - came):.0f} ms old, at most {1000 * stale:.0f}")
