"""Which readings of a robot a policy may act on. What fails is bridged by whoever reads, for as long as it may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.observations import Arrays, Observation, Observations, observations_of
from lram_export.runtimes.protocol import check_magnitude
from lram_export.spec.interface import FieldInterface, Interface, elementwise
from lram_export.spec.tensors import StepSpec, TensorSpec

MISSING, UNUSABLE, NOT_FINITE, LIMITS, FROZEN = "missing", "unusable", "not finite", "out of limits", "frozen"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a reading: its kind, and a line that names the field."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}" if self.text else self.kind


class Readings:
    """Checks readings, and keeps the last good one.

    Attributes:
        last: the last good reading, by name, as ``Policy.act`` takes it; None before there was one.
        came: what was checked last, good or not, by name, with rows; nothing where it could not be read.
    """

    def __init__(self, spec: StepSpec, interface: Interface, frozen: int = 0) -> None:
        """``frozen``: how many readings in a row may be the same to the bit; 0: any number."""
        self.are_of(spec, interface)
        self._frozen, self._same = frozen, 0
        self._before: Arrays | None = None
        self.last: Mapping[str, NDArray[Any]] | None = None
        self.came: Arrays = {}

    def are_of(self, spec: StepSpec, interface: Interface) -> None:
        """From now on they are for another policy, which takes the same."""
        self._observations = Observations(spec)
        self._fields = [_Field(t, interface.observation.get(t.name, FieldInterface())) for t in observations_of(spec)]

    def start(self) -> None:
        """An episode starts: what was read before stands for nothing in it."""
        self._before, self._same, self.last = None, 0, None

    def check(self, reading: Observation | None) -> Fault | None:
        """What is wrong with a reading; None where nothing is: then it is the last good one, a copy."""
        self.came = {}
        if reading is None:
            return Fault(MISSING, "")
        try:
            read, single = self._observations.read(reading)
        except ValueError as error:
            return Fault(UNUSABLE, str(error))
        found = {name: values.copy() for name, values in read.items()}  # the robot may fill its own anew at any time
        self.came = found
        for field in self._fields:
            fault = field.fault(found[field.name])
            if fault is not None:
                return fault
        if self._is_frozen(found):
            return Fault(FROZEN, f"the same to the bit {self._same + 1} times in a row")
        self.last = {name: values[0] if single else values for name, values in found.items()}
        return None

    def failed(self, fault: Fault) -> Fault:
        """There is no reading; the fault that says why."""
        self.came = {}
        return fault

    def _is_frozen(self, found: Arrays) -> bool:
        if not self._frozen:
            return False
        before = self._before
        alike = before is not None and all(np.array_equal(before[name], found[name]) for name in found)
        self._same = self._same + 1 if alike else 0
        self._before = found
        return self._same >= self._frozen


class _Field:
    """One observation: what of it a step can take, and what its sensor can read."""

    def __init__(self, tensor: TensorSpec, of: FieldInterface) -> None:
        self.name, self._limit, self._of = tensor.name, tensor.limit, of
        self._numbers = tensor.dtype == "float32"
        self._bounds = None
        if self._numbers and of.limits is not None:
            self._bounds = tuple(elementwise(side, tensor) for side in (of.limits.low, of.limits.high))

    def fault(self, values: NDArray[Any]) -> Fault | None:
        """What is wrong with its values, with rows."""
        if not self._numbers:
            return None
        try:
            check_magnitude(self.name, values, self._limit)
        except ValueError as error:
            return Fault(NOT_FINITE if not np.isfinite(values).all() else LIMITS, str(error))
        if self._bounds is None:
            return None
        low, high = self._bounds
        beyond = (values < low) | (values > high)
        return Fault(LIMITS, self._beyond(values, np.argwhere(beyond)[0])) if beyond.any() else None

    def _beyond(self, values: NDArray[Any], place: NDArray[np.intp]) -> str:
        assert self._bounds is not None
        low, high = (np.broadcast_to(side, values.shape)[tuple(place)] for side in self._bounds)
        element = int(np.ravel_multi_index(place[1:].tolist(), values.shape[1:])) if values.ndim > 1 else 0
        name = str(element) if self._of.elements is None else self._of.elements[element]
        return f"{self.name}: {name}: expected {low:g} to {high:g}, got {values[tuple(place)]:g}"
