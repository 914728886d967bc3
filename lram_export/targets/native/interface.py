"""What an artifact of the target `native` says of its robot; the other side is `kernels/native/src/interface.h`.

Only what the step does not do by itself: rate, names, units, limits and safety. What is normalized and scaled are
tensors of the step.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lram_export.spec.interface import FieldInterface, Interface, Numbers
from lram_export.targets.native.format import Layout, Role, Tensor, stored_name

HEADER_BYTES, FIELD_BYTES, ELEMENT_BYTES = 16, 88, 104
NAME, UNIT = 72, 16
"""Bytes that there are for a name, of a field or an element, and a unit, a zero behind it included."""


@dataclass(frozen=True)
class ElementFacts:
    """What is said of an element of a field; None, or "", where nothing is."""

    name: str = ""
    unit: str = ""
    low: float | None = None
    high: float | None = None
    most_change: float | None = None
    safe: float | None = None

    def pack(self) -> bytes:
        """As it lies in the file."""
        unknown = (-math.inf, math.inf, math.inf, math.nan)
        said = (self.low, self.high, self.most_change, self.safe)
        numbers = (u if number is None else number for number, u in zip(said, unknown, strict=True))
        return struct.pack(f"<{NAME}s{UNIT}s4f", self.name.encode(), self.unit.encode(), *numbers)


@dataclass(frozen=True)
class FieldFacts:
    """What is said of a field: of each of its elements (or of the choices of a discrete action), or of all at once."""

    elements: tuple[ElementFacts, ...]
    most_clamps: int = 0

    def columns(self) -> dict[str, Any]:
        """Each fact of all elements, by its name."""
        names = [part.name for part in dataclasses.fields(ElementFacts)]
        columns = {name: [getattr(element, name) for element in self.elements] for name in names}
        return {**columns, "most_clamps": self.most_clamps}


Side = Mapping[str, FieldFacts]
"""Name of an input, or of an output -> what is said of it."""


def facts(fields: Mapping[str, FieldInterface]) -> dict[str, FieldFacts]:
    """What an artifact says of the observations or of the actions of an interface."""
    found = {name: _facts(of) for name, of in fields.items()}
    return {name: of for name, of in found.items() if of.elements}


def _facts(of: FieldInterface) -> FieldFacts:
    limits, safety = of.limits, of.safety
    said: dict[str, Sequence[Any]] = {}
    if of.elements is not None:
        said["name"] = [stored_name(name, NAME) for name in of.elements]
    if of.units is not None:
        said["unit"] = of.units
    if limits is not None:
        said["low"], said["high"] = _floats(limits.low), _floats(limits.high)
    if safety is not None and safety.most_change is not None:
        said["most_change"] = _floats(safety.most_change)
    if safety is not None and safety.safe_action is not None:
        said["safe"] = _floats(safety.safe_action)
    count = max(map(len, said.values()), default=0)
    every = {name: list(values) * count if len(values) == 1 else list(values) for name, values in said.items()}
    elements = tuple(ElementFacts(**{name: values[i] for name, values in every.items()}) for i in range(count))
    return FieldFacts(elements, 0 if safety is None else safety.most_clamps or 0)


def _floats(numbers: Numbers) -> list[float]:
    """As float32 holds them."""
    return [float(number) for number in np.atleast_1d(np.asarray(numbers, np.float32))]


def interface_tensor(interface: Interface) -> Tensor | None:
    """What an artifact holds of an interface; None where it says nothing that belongs there."""
    sides = facts(interface.observation), facts(interface.action)
    if interface.rate is None and not any(sides):
        return None
    parts = [struct.pack("<dII", interface.rate or 0.0, sum(map(len, sides)), 0)]
    for output, side in enumerate(sides):
        for name, of in side.items():
            parts.append(struct.pack(f"<{NAME}s4I", name.encode(), output, len(of.elements), of.most_clamps, 0))
            parts.extend(element.pack() for element in of.elements)
    words = np.frombuffer(b"".join(parts), "<u4")
    return Tensor(Role.INTERFACE, 0, Layout.PLAIN_FLOAT32, 1, 1, words.size, words)


Told = tuple[int, Sequence[tuple[Any, ...]]]
"""``most_clamps`` and the elements of a field, as the engine tells them."""


def as_told(rate: float, inputs: Mapping[str, Told], outputs: Mapping[str, Told]) -> dict[str, Any]:
    """What the engine tells of an artifact, for a comparison with :func:`as_said`."""
    sides = [
        {name: FieldFacts(tuple(ElementFacts(*one) for one in every), most) for name, (most, every) in side.items()}
        for side in (inputs, outputs)
    ]
    return _comparable(rate, sides)


def as_said(interface: Interface) -> dict[str, Any]:
    """The same of a manifest's interface."""
    return _comparable(interface.rate or 0.0, (facts(interface.observation), facts(interface.action)))


def _comparable(rate: float, sides: Iterable[Side]) -> dict[str, Any]:
    named = zip(("observation", "action"), sides, strict=True)
    return {"rate": rate, **{name: {key: of.columns() for key, of in side.items()} for name, side in named}}
