"""Observations as callers have them: lists, arrays and tensors of any type of number, to the arrays that a step takes.

What is refused is wrong (a shape, text, NaN) or could mean two things: pixels as fractions, images with the channels
last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lram_export.arrays import numbers, to_numpy
from lram_export.runtimes.protocol import check_magnitude, short
from lram_export.spec.tensors import StepSpec, TensorSpec

Observation = ArrayLike | Mapping[str, Any]
"""The observation, or all of them by name."""
Arrays = dict[str, NDArray[Any]]
"""Observations by name, as a step takes them."""
CHANNELS = (1, 3, 4)
"""What an image can have: grey, colours, and how opaque."""


def observations_of(spec: StepSpec) -> tuple[TensorSpec, ...]:
    """The inputs of a step that are observations: all that the step API does not fill itself."""
    return tuple(tensor for tensor in spec.inputs if tensor.name not in ("return_to_go", "reward", "is_first"))


class Observations:
    """Reads what a policy observes."""

    def __init__(self, spec: StepSpec) -> None:
        self._fields = tuple(_Field(tensor, spec.batch_size) for tensor in observations_of(spec))
        self._only = self._fields[0] if len(self._fields) == 1 else None
        self._names = [field.name for field in self._fields]

    def read(self, observation: Observation) -> tuple[Arrays, bool]:
        """The observations of a step by name, with rows, and whether they came without.

        Raises:
            ValueError: naming the field, what was expected and what came.
        """
        only = self._only
        if only is not None and type(observation) is np.ndarray:
            values, single = only.step(observation)
            return {only.name: values}, single
        found = {field.name: field.step(value) for field, value in self._by_name(observation)}
        without = {single for _, single in found.values()}
        if len(without) > 1:
            raise ValueError(f"observation: expected rows in all of {', '.join(self._names)}, or in none of them")
        return {name: values for name, (values, _) in found.items()}, without.pop()

    def history(self, observations: Observation) -> tuple[Arrays, int]:
        """Observations of consecutive steps by name, (N, B, ...), every value checked; and N.

        Raises:
            ValueError: naming the field, what was expected and what came.
        """
        found = {field.name: field.history(value) for field, value in self._by_name(observations)}
        steps = {name: len(values) for name, values in found.items()}
        first = self._names[0]
        for name, number in steps.items():
            if number != steps[first]:
                raise ValueError(f"{name}: expected {steps[first]} steps, as in {first}, got {number}")
        return found, steps[first]

    def check_as_given(self, observation: Observation) -> None:
        """Raise ValueError, naming the value that no step takes by its place in the caller's array, if there is one."""
        for field, value in self._by_name(observation):
            field.check(value)

    def _by_name(self, observation: Observation) -> list[tuple[_Field, object]]:
        """Every field with what came for it."""
        if not isinstance(observation, Mapping):
            if self._only is None:
                raise ValueError(
                    f"observation: expected a mapping with {', '.join(self._names)}, got {type(observation).__name__}"
                )
            return [(self._only, observation)]
        odd = [name for name in (*self._names, *observation) if (name in self._names) != (name in observation)]
        if odd:
            what = "missing" if odd[0] in self._names else f"unknown; this policy takes {', '.join(self._names)}"
            raise ValueError(f"{odd[0] if isinstance(odd[0], str) else short(odd[0])}: {what}")
        return [(field, _unwrapped(field.name, observation[field.name])) for field in self._fields]


class _Field:
    """One observation."""

    def __init__(self, tensor: TensorSpec, batch_size: int) -> None:
        self.name, self._limit = tensor.name, tensor.limit
        self._type = np.dtype(tensor.dtype)
        self._rows, self._row = tensor.shape, tensor.shape[1:]
        self._alone = batch_size == 1
        self._shapes = [self._row, self._rows] if self._alone else [self._rows]

    def step(self, value: object) -> tuple[NDArray[Any], bool]:
        """With rows, and whether it came without."""
        array = value if type(value) is np.ndarray else to_numpy(self.name, value)
        shape = array.shape
        if shape == self._rows:
            return array if array.dtype == self._type else self._converted(value, array), False
        if shape == self._row and self._alone:
            return (array if array.dtype == self._type else self._converted(value, array)).reshape(self._rows), True
        raise self._mismatch(value, array)

    def history(self, value: object) -> NDArray[Any]:
        """(N, B, ...), every value checked."""
        array = to_numpy(self.name, value)
        if array.ndim == 0 or array.shape[1:] not in self._shapes:
            raise self._mismatch(value, array, "N")
        if array.dtype != self._type:
            array = self._converted(value, array, "N")
        if self._type.kind == "f":
            check_magnitude(self.name, array, self._limit)
        return array.reshape(len(array), *self._rows)

    def check(self, value: object) -> None:
        """Raise ValueError where a value is none that a step takes."""
        if self._type.kind == "f":
            check_magnitude(self.name, numbers(self.name, value), self._limit)

    def _converted(self, value: object, array: NDArray[Any], *lead: str) -> NDArray[Any]:
        """Numbers of another type as this one, where they mean the same."""
        if array.dtype.kind not in "fiubO":
            raise self._mismatch(value, array, *lead)
        if array.dtype.kind == "O":
            array = numbers(self.name, array)
            if self._type.kind != "f" and (array == np.floor(array)).all():
                return self._narrowed(array)
        kind = array.dtype.kind
        if self._type.kind == "f":
            if kind == "f":  # float32 holds whole numbers of any width
                check_magnitude(self.name, array, self._limit)
            return array.astype(self._type)
        if kind == "f" or (kind == "b" and self._is_image):
            raise ValueError(f"{self._expected(*lead)}, got {array.dtype}; {self._scaling(array)}")
        return self._narrowed(array)

    def _narrowed(self, array: NDArray[Any]) -> NDArray[Any]:
        """Whole numbers as this type, which may be narrower."""
        bounds = np.iinfo(self._type)
        if array.dtype.kind != "b" and array.size and not bounds.min <= array.min() <= array.max() <= bounds.max:
            place = np.argwhere((array < bounds.min) | (array > bounds.max))[0].tolist()
            expected = f"expected values from {bounds.min} to {bounds.max}"
            raise ValueError(f"{self.name}: {expected}, got {array[tuple(place)]:g} at {place}")
        return array.astype(self._type)

    @property
    def _is_image(self) -> bool:
        return self._type == np.uint8 and len(self._row) == 3

    def _scaling(self, array: NDArray[Any]) -> str:
        """What numbers that are no whole ones seem to mean, and how to say so."""
        if not self._is_image:
            return f"pass whole numbers, .astype(np.{self._type})"
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if low >= 0 and high <= 1:
            return "the values look like 0..1: pass (255 * image).round().astype(np.uint8)"
        if low >= 0 and high <= 255:
            return "the values look like 0..255: pass image.round().astype(np.uint8)"
        return f"the values, from {low:g} to {high:g}, look like neither 0..1 nor 0..255: pass pixels as uint8"

    def _mismatch(self, value: object, array: NDArray[Any], *lead: str) -> ValueError:
        """Another shape, or no numbers at all; ``lead`` is what comes before the shape of a step."""
        if array.dtype.kind == "O" and array.ndim == 0:
            return ValueError(f"{self._expected(*lead)}, got {short(value)}")
        turned = self._turned(array.shape[len(lead) :])
        return ValueError(f"{self._expected(*lead)}, got {array.dtype} of shape {array.shape}{turned}")

    def _expected(self, *lead: str) -> str:
        shapes = (", ".join([*lead, *map(str, shape)]) + "," * (len(lead) + len(shape) == 1) for shape in self._shapes)
        return f"{self.name}: expected {self._type} of shape {' or '.join(f'({shape})' for shape in shapes)}"

    def _turned(self, shape: tuple[int, ...]) -> str:
        """What to say where the channels of an image are at the other end."""
        if not self._is_image:
            return ""
        a, b, c = self._row
        for found in {shape, shape[1:]}:
            if found == (b, c, a) and a in CHANNELS:
                return "; this looks like HWC: transpose it, or use lram_export.camera.prepare"
            if found == (c, a, b) and c in CHANNELS:
                return "; this looks like CHW: transpose it, or use lram_export.camera.prepare"
        return ""


def _unwrapped(name: str, value: object) -> object:
    """What lies in a mapping of one element that is called as its field is."""
    if not isinstance(value, Mapping):
        return value
    if set(value) != {name}:
        raise ValueError(f"{name}: expected an array, or a mapping with '{name}' alone, got {short(dict(value))}")
    return value[name]
