"""The safety of an interface as nodes: what :mod:`lram_export.envelope` does to actions, to the bit."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.bundle import Bundle
from lram_export.conversion.closed.step import SAFETY
from lram_export.conversion.closed.tape import PREFIX, Tape
from lram_export.errors import UsageError
from lram_export.policy import choices
from lram_export.spec.interface import FieldInterface, Numbers, actions_of, clamped, scaled
from lram_export.spec.tensors import UNCLAMPED, StepSpec, TensorSpec, next_name

MOST_CLAMPS = 1 << 24
"""What float32 counts to."""


def hold_actions(tape: Tape, bundle: Bundle, starts: str) -> dict[str, str]:
    """Hold every action that has a safety to it.

    Args:
        tape: for the nodes.
        bundle: whose interface says it.
        starts: name of a boolean (rows,), whether a row starts an episode.

    Returns:
        Name of an action -> what the graph has to call it from now on; under the old name it is held.

    Raises:
        UsageError: a count that float32 cannot reach.
    """
    manifest = bundle.manifest
    spec = manifest.spec.with_batch(1)
    renamed = {}
    for name, tensor in actions_of(spec).items():
        of = manifest.interface.action.get(name, FieldInterface())
        if of.safety is None:
            continue
        if (of.safety.most_clamps or 0) >= MOST_CLAMPS:
            raise UsageError(
                f"{bundle.path}: action.{name}.safety.most_clamps: a graph of float32 counts to {MOST_CLAMPS}, got "
                f"{of.safety.most_clamps}"
            )
        renamed[name] = f"{PREFIX}{name}"
        _Held(tape, tensor, of, renamed[name], starts).emit(spec, choices(bundle))
    return renamed


class _Held:
    """One action, (rows, elements) in here."""

    def __init__(self, tape: Tape, tensor: TensorSpec, of: FieldInterface, chosen: str, starts: str) -> None:
        assert of.safety is not None
        self._tape, self._tensor, self._of, self._safety = tape, tensor, of, of.safety
        self._size, self._chosen = math.prod(tensor.shape[1:]), chosen
        self._starts = tape.op("Reshape", starts, tape.constant(np.array([-1, 1], np.int64)))

    def emit(self, spec: StepSpec, values: NDArray[np.float32] | None) -> None:
        tape = self._tape
        action = self._flat(self._chosen)
        if self._safety.most_clamps is not None and self._safety.safe_action is not None:
            stopped = self._stopped(self._clamps(spec, values), self._safety.most_clamps)
            action = tape.op("Where", stopped, self._numbers(self._safety.safe_action), action)
        if self._safety.most_change is not None:
            action = self._bounded(action, self._numbers(self._safety.most_change))
        shape = tape.constant(np.array([-1, *self._tensor.shape[1:]], np.int64))
        tape.op("Reshape", action, shape, output=self._tensor.name)

    def _bounded(self, action: str, most: str) -> str:
        """Not further from what was held before than that, but at the start."""
        tape, before = self._tape, self._state("held")
        low, high = tape.op("Sub", before, most), tape.op("Add", before, most)
        bounded = tape.op("Min", tape.op("Max", action, low), high)
        return tape.op("Where", self._starts, action, bounded, output=next_name(before))

    def _stopped(self, clamps: str, most: int) -> str:
        """Whether a limit clamped the action too often in a row, at some step of the episode: a boolean."""
        tape = self._tape
        zero, one = self._number(0), self._number(1)
        count = tape.op("Add", tape.op("Where", self._starts, zero, self._state("clamps")), one)
        count = tape.op("Where", clamps, count, zero, output=next_name(self._state("clamps")))
        before = tape.op("Where", self._starts, zero, self._state("stopped"))
        now = tape.op("Where", tape.op("Greater", count, self._number(most)), one, before)
        tape.op("Identity", now, output=next_name(self._state("stopped")))
        return tape.op("Greater", now, zero)

    def _clamps(self, spec: StepSpec, values: NDArray[np.float32] | None) -> str:
        """Whether the graph clamped any element: a boolean (rows, 1)."""
        tape, scores = self._tape, spec.scores_of(self._tensor)
        if scores is None:
            unequal = tape.op("Not", tape.op("Equal", self._flat(self._chosen), self._flat(self._unclamped)))
        else:
            assert values is not None
            every = scaled(np.repeat(values[:, None], self._size, axis=1), self._tensor, self._of)
            held = np.ascontiguousarray((clamped(every, self._tensor, self._of) != every).T)  # (elements, values)
            places = tape.op("ArgMax", scores.name, axis=-1, keepdims=0)
            first = tape.constant(np.arange(self._size, dtype=np.int64)[None] * len(values))
            unequal = tape.op("Gather", tape.constant(held.ravel()), tape.op("Add", places, first))
        numbers = tape.op("Cast", unequal, to=1)
        largest = tape.op("ReduceMax", numbers, tape.constant(np.array([1], np.int64)), keepdims=1)
        return tape.op("Greater", largest, self._number(0))

    @property
    def _unclamped(self) -> str:
        return self._tensor.name + UNCLAMPED

    def _flat(self, name: str) -> str:
        return self._tape.op("Reshape", name, self._tape.constant(np.array([-1, self._size], np.int64)))

    def _state(self, part: str) -> str:
        return f"{SAFETY}.{self._tensor.name}.{part}"

    def _number(self, value: float) -> str:
        return self._tape.constant(np.full((1, 1), value, np.float32))

    def _numbers(self, numbers: Numbers) -> str:
        """One for each element, (1, elements)."""
        return self._tape.constant(np.broadcast_to(np.asarray(numbers, np.float32), (1, self._size)))
