"""A flight as an ``.npz``, for whoever has numpy and nothing else.

Arrays named ``flight_...`` have a row for each step that is in the file. Those with the names of the step's inputs are
what ``lram-export record`` writes: the steps that can be taken again, so that every command takes the file that takes
such a recording.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.flight.reader import Flight
from lram_export.flight.steps import GIVEN, FlightStep
from lram_export.flight.stretches import to_take
from lram_export.spec.interface import actions_of
from lram_export.system.npz import save_npz

PREFIX = "flight_"
_WHOLE, _TIMES = ("step", "missed", "dropped", "bundle", "fault"), ("time", "seconds", "latency")


def arrays(flight: Flight) -> dict[str, NDArray[Any]]:
    """Every array of the archive. Of numbers that a step does not have: NaN, of whole ones 0; ``..._known`` says where.

    ``flight_fault`` counts in ``flight_faults``, the kinds as bytes of UTF-8 with line breaks between, from 1 on.
    """
    columns = _Columns(flight)
    kinds: dict[str, int] = {"": 0}
    for row, step in enumerate(flight.steps()):
        columns.put(row, step, kinds.setdefault(step.fault, len(kinds)))
    found = columns.found | {"faults": np.frombuffer("\n".join([kind for kind in kinds if kind]).encode(), np.uint8)}
    again = [taken.step.inputs for taken in to_take(flight)]
    recording = {t.name: np.stack([inputs[t.name] for inputs in again]) for t in flight.header.spec.inputs if again}
    return {**recording, **{PREFIX + name: values for name, values in found.items()}}


def save_archive(flight: Flight, path: Path) -> None:
    """Write the archive of a flight."""
    save_npz(path, arrays(flight))


class _Columns:
    """The arrays while they are filled, a row for each step of the loop."""

    def __init__(self, flight: Flight) -> None:
        spec, self._count = flight.header.spec, flight.count
        self.found: dict[str, NDArray[Any]] = {
            name: np.zeros(flight.count, dtype)
            for names, dtype in ((_WHOLE, "int64"), (_TIMES, "float64"), (("stepped",), "bool"))
            for name in names
        }
        for tensor in spec.inputs:
            self._add("input", tensor.name, tensor.shape, tensor.dtype)
            if tensor.name not in GIVEN:
                self._add("reading", tensor.name, tensor.shape, tensor.dtype)
        for name, tensor in actions_of(spec).items():
            self._add("output", name, tensor.shape, tensor.dtype)
            self._add("chosen", name, tensor.shape, tensor.dtype)
            self._add("clamped", name, tensor.shape, "bool")
        sent = spec.outputs[0]
        self._add("sent", sent.name, sent.shape, sent.dtype)
        self._add("reward", "", (spec.batch_size,), "float64")

    def _add(self, group: str, name: str, shape: tuple[int, ...], dtype: str) -> None:
        full = f"{group}_{name}".rstrip("_")
        values = np.zeros((self._count, *shape), dtype)
        if values.dtype.kind == "f":
            values.fill(np.nan)
        self.found |= {full: values, f"{full}_known": np.zeros(self._count, np.bool_)}

    def put(self, row: int, step: FlightStep, fault: int) -> None:
        """What a step has; ``fault`` is the number of its kind."""
        for name in (*_WHOLE, *_TIMES, "stepped"):
            self.found[name][row] = fault if name == "fault" else getattr(step, name)
        groups = {
            "input": step.inputs, "output": step.outputs, "chosen": step.chosen, "clamped": step.clamped,
            "reading": step.reading,
        }  # fmt: skip
        for group, values in groups.items():
            for name, value in values.items():
                self._fill(row, f"{group}_{name}", value)
        if step.reward is not None:
            self._fill(row, "reward", step.reward)
        if step.sent:
            name = next(name for name in self.found if name.startswith("sent_"))
            self._fill(row, name, step.sent[-1])

    def _fill(self, row: int, name: str, value: NDArray[Any]) -> None:
        self.found[name][row] = value.reshape(self.found[name].shape[1:])
        self.found[f"{name}_known"][row] = True
