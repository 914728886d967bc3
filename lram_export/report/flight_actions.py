"""What became of the actions of a flight: what the policy chose, what held it back, what the robot was sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.flight.reader import Flight
from lram_export.flight.steps import FlightStep
from lram_export.report.bins import Bins, Counted, Floats
from lram_export.spec.interface import FieldInterface, Interface, actions_of
from lram_export.spec.tensors import TensorSpec

GROUPS = 1000
"""Of steps, about, in which actions are looked at: far more than there are bins."""
CHOSEN, SENT = 0, 1
CLAMPED, CHANGED = 0, 1


@dataclass(frozen=True)
class Range:
    """A number over time: its least, its mean and its most in every bin, (bins,); NaN in those that have none."""

    least: Floats
    mean: Floats
    most: Floats


@dataclass(frozen=True)
class Element:
    """One element of an action, all rows together.

    Attributes:
        name: of the element, behind the action's where there are several or the element has none.
        unit: "" where it is not known.
        chosen: by the policy, before its safety.
        sent: to the robot, the last of each step; None: it is of another action than that which is sent.
        clamped, changed: how often a limit clamped it, and how often safety changed it, in every bin, (bins,).
        counts: how often it was chosen, in every bin, (bins,).
    """

    name: str
    unit: str
    chosen: Range
    sent: Range | None
    clamped: Counted
    changed: Counted
    counts: Counted

    @property
    def held_back(self) -> int:
        """How often it was not what the policy would have had."""
        return int(self.clamped.sum() + self.changed.sum())


class ActionSeen:
    """One action over the steps of a flight. Steps are looked at in groups: the bins are known when all were seen."""

    def __init__(self, name: str, tensor: TensorSpec, flight: Flight) -> None:
        self._name, self._tensor, self._flight = name, tensor, flight
        self._size = tensor.size // tensor.shape[0]
        self._is_sent = name == flight.header.spec.outputs[0].name
        self._per = max(1, flight.count // GROUPS)
        groups = -(-flight.count // self._per)
        self._least = np.full((groups, 2, self._size), np.inf)
        self._most = np.full((groups, 2, self._size), -np.inf)
        self._total, self._held = (np.zeros((groups, 2, self._size)) for _ in range(2))
        self._count = np.zeros((groups, 2))
        self._group, self._steps = 0, list[FlightStep]()

    def add(self, step: FlightStep) -> None:
        """Of every step, in order."""
        self._steps.append(step)
        if len(self._steps) == self._per:
            self._look()

    def _look(self) -> None:
        """At the steps of a group."""
        name, at, size = self._name, self._group, self._size
        chosen = [step.chosen.get(name, step.outputs.get(name)) for step in self._steps]
        sent = [step.sent[-1] for step in self._steps if step.sent and self._is_sent]
        for side, values in ((CHOSEN, chosen), (SENT, sent)):
            found = _together(values, size)
            self._least[at, side] = found.min(axis=0, initial=np.inf)
            self._most[at, side] = found.max(axis=0, initial=-np.inf)
            self._total[at, side] = found.sum(axis=0)
            self._count[at, side] = len(found)
        for step in self._steps:
            if name in step.clamped:
                self._held[at, CLAMPED] += step.clamped[name].reshape(-1, size).sum(axis=0)
            if name in step.chosen:
                changed = np.not_equal(step.chosen[name], step.outputs[name])
                self._held[at, CHANGED] += changed.reshape(-1, size).sum(axis=0)
        self._group, self._steps = at + 1, []

    def elements(self, interface: Interface, bins: Bins) -> list[Element]:
        """All of the action's, once every step was added."""
        if self._steps:
            self._look()
        first_steps = np.arange(len(self._count)) * self._per
        edges = np.searchsorted(first_steps, np.append(bins.starts, self._flight.count))
        least = _by_bin(np.minimum, np.inf, self._least, edges)
        most = _by_bin(np.maximum, -np.inf, self._most, edges)
        total, held, number = (_by_bin(np.add, 0, of, edges) for of in (self._total, self._held, self._count))
        count = number[..., None]
        with np.errstate(invalid="ignore"):  # where there is none: infinities, and 0 / 0
            ranges = np.where(count > 0, np.stack([least, total / count, most]), np.nan)
        names, units = self._names(interface)
        return [
            Element(
                name=names[i],
                unit=units[i],
                chosen=Range(*ranges[:, :, CHOSEN, i]),
                sent=Range(*ranges[:, :, SENT, i]) if self._is_sent else None,
                clamped=held[:, CLAMPED, i].astype(np.int64),
                changed=held[:, CHANGED, i].astype(np.int64),
                counts=number[:, CHOSEN].astype(np.int64),
            )
            for i in range(self._size)
        ]

    def _names(self, interface: Interface) -> tuple[Sequence[str], Sequence[str]]:
        """Name and unit of every element."""
        of, size = interface.action.get(self._name, FieldInterface()), self._size
        units = of.units or ("",)
        units = units * size if len(units) == 1 else units
        named = of.elements is not None and self._tensor.dtype == "float32"  # of whole numbers they name the choices
        elements = list(of.elements or ()) if named else [str(i) for i in range(size)]
        if named and len(actions_of(self._flight.header.spec)) == 1:
            return elements, units
        return [self._name] if size == 1 else [f"{self._name} {element}" for element in elements], units


def _together(values: Sequence[NDArray[Any] | None], size: int) -> Floats:
    """Those that are there and finite, with all rows, (n, elements)."""
    there = [value for value in values if value is not None]
    found = np.array(there, np.float64).reshape(-1, size)
    return found[np.isfinite(found).all(axis=1)]


def _by_bin(combine: np.ufunc, start: float, values: Floats, edges: NDArray[np.intp]) -> Floats:
    """Groups of steps, (groups, ...), put together to bins, (bins, ...); ``start`` changes nothing."""
    parts = [combine.reduce(values[a:b], axis=0, initial=start) for a, b in pairwise(edges)]
    return np.array(parts).reshape(len(parts), *values.shape[1:])
