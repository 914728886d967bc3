"""What an action is held to before the robot gets it, tick by tick: how often limits clamped it, and the safety that an
interface asks for. The C library does the same in its steps; see :class:`~lram_export.spec.interface.Safety`.

It is outside of the step graph, and the policy's state never knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lram_export.arrays import is_ragged
from lram_export.runtimes.protocol import check_magnitude
from lram_export.spec.counts import Counts
from lram_export.spec.interface import FieldInterface, Floats, Interface, Numbers, actions_of, clamped, scaled
from lram_export.spec.tensors import UNCLAMPED, StepSpec, TensorSpec

Outputs = Mapping[str, NDArray[Any]]
Flags = NDArray[np.bool_]


class Envelope:
    """The actions of a step that have limits or a safety, and what they were at the tick before."""

    def __init__(self, spec: StepSpec, interface: Interface, values: Floats | None = None) -> None:
        """``values`` are what an action that is chosen from scores can be before it is scaled and clamped, (n,)."""
        actions = actions_of(spec)
        self._fields = {
            name: _Action(actions[name], of, _clamps(spec, actions[name], of, values))
            for name, of in interface.action.items()
            if name in actions and (of.limits is not None or of.safety is not None)
        }

    def __bool__(self) -> bool:
        """Whether there is anything to count or to hold to."""
        return bool(self._fields)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the actions that are held."""
        return tuple(self._fields)

    def apply(self, outputs: Outputs) -> None:
        """Count what the graph clamped, and make each action in ``outputs`` what the robot may get, in place."""
        for name, field in self._fields.items():
            outputs[name][...] = field.held(outputs).reshape(outputs[name].shape)

    def start(self, rows: Sequence[int] | Flags, *, with_this_step: bool = False) -> None:
        """Rows start an episode: of what they did before nothing holds them, nor that they were stopped.

        ``with_this_step``: by the observation that is at hand, so that what was said of them since the last step, see
        :meth:`hold`, is of this episode.
        """
        for field in self._fields.values():
            field.start(rows, with_this_step)

    def hold(self, action: ArrayLike | Mapping[str, ArrayLike], rows: Sequence[int]) -> None:
        """Say what rows of the robot hold, from which the next action may differ by no more than it may.

        Raises:
            ValueError: an action that has no safety, or not finite numbers of its shape; nothing has changed.
        """
        if not self._fields:
            raise ValueError("action: nothing holds this policy's actions: its interface says no limits and no safety")
        given = action if isinstance(action, Mapping) else {next(iter(self._fields)): action}
        for name in given:
            if name not in self._fields:
                raise ValueError(f"{name}: expected one of {', '.join(self._fields)}")
        checked = {name: self._fields[name].checked(value, len(rows)) for name, value in given.items()}
        for name, value in checked.items():
            self._fields[name].hold(value, rows)

    def counts(self) -> dict[str, Counts]:
        """What became of each action that has limits or a safety, since the policy was loaded; copies."""
        return {name: field.counts() for name, field in self._fields.items()}

    def take_over(self, other: Envelope) -> None:
        """Go on where another is, for the actions that both have: the robot stays where it is."""
        for name, field in self._fields.items():
            if name in other._fields:
                field.take_over(other._fields[name])


class _Action:
    def __init__(self, tensor: TensorSpec, of: FieldInterface, clamps: Callable[[Outputs], Flags] | None) -> None:
        rows, size = tensor.shape[0], tensor.size // tensor.shape[0]
        safety = of.safety
        self._name, self._shape, self._size, self._clamps = tensor.name, tensor.shape[1:], size, clamps
        self._safe = None if safety is None else _each(safety.safe_action, size)
        self._most_change = None if safety is None else _each(safety.most_change, size)
        self._most_clamps = None if safety is None else safety.most_clamps
        self._clamped, self._slowed = (np.zeros((rows, size), np.int64) for _ in range(2))
        self._stops, self._consecutive = (np.zeros(rows, np.int64) for _ in range(2))
        self._stopped, self._known = (np.zeros(rows, np.bool_) for _ in range(2))
        self._told = np.zeros(rows, np.bool_)  # by hold(), since the last step
        self._previous = np.zeros((rows, size), np.float32)

    def held(self, outputs: Outputs) -> Floats:
        """The action that the robot may get: (B, elements)."""
        action: Floats = outputs[self._name].reshape(self._previous.shape)
        if self._clamps is not None:
            clamped = self._clamps(outputs)
            self._clamped += clamped
            self._consecutive += 1
            self._consecutive[~clamped.any(axis=1)] = 0
        if self._most_clamps is not None and self._safe is not None:
            self._stopped |= self._consecutive > self._most_clamps
            self._stops += self._stopped
            action = np.where(self._stopped[:, None], self._safe, action)
        if self._most_change is not None:
            wanted = action
            with np.errstate(over="ignore"):  # beyond float32 there is no bound
                low, high = self._previous - self._most_change, self._previous + self._most_change
            action = np.where(self._known[:, None], np.minimum(np.maximum(wanted, low), high), wanted)
            self._slowed += action != wanted
        self._previous[...] = action
        self._known[:], self._told[:] = True, False
        return action

    def start(self, rows: Sequence[int] | Flags, with_this_step: bool) -> None:
        self._consecutive[rows] = 0
        self._stopped[rows] = False
        self._known[rows] = self._told[rows] if with_this_step else False
        self._told[rows] &= with_this_step

    def checked(self, value: ArrayLike, rows: int) -> Floats:
        """What a robot holds, for each row: (rows, elements); raises ValueError."""
        expected = f"{self._name}: expected numbers of shape {self._shape} or {(rows, *self._shape)}"
        try:
            found = np.asarray(value)
        except ValueError:
            found = None
        if found is None or is_ragged(found):
            raise ValueError(f"{expected}, got lists of different lengths")
        if found.shape not in (self._shape, (rows, *self._shape)) or found.dtype.kind not in "fiu":
            raise ValueError(f"{expected}, got {found.dtype} of shape {found.shape}")
        with np.errstate(over="ignore"):
            numbers = found.astype(np.float32)
        check_magnitude(self._name, numbers)
        return np.broadcast_to(numbers.reshape(-1, self._size), (rows, self._size))

    def hold(self, value: Floats, rows: Sequence[int]) -> None:
        self._previous[rows] = value
        self._known[rows] = self._told[rows] = True

    def counts(self) -> Counts:
        kept = (self._clamped, self._slowed, self._stops, self._consecutive)
        return Counts(*(values.copy() for values in kept))

    def take_over(self, other: _Action) -> None:
        mine, theirs = self._memory(), other._memory()
        if [values.shape for values in mine] == [values.shape for values in theirs]:
            for own, values in zip(mine, theirs, strict=True):
                own[...] = values

    def _memory(self) -> list[NDArray[Any]]:
        counted = [self._clamped, self._slowed, self._stops, self._consecutive]
        return [*counted, self._stopped, self._known, self._told, self._previous]


def _each(numbers: Numbers | None, size: int) -> Floats | None:
    """One number for each element; None where nothing is said."""
    return None if numbers is None else np.broadcast_to(np.asarray(numbers, np.float32), size)


def _clamps(
    spec: StepSpec, tensor: TensorSpec, of: FieldInterface, values: Floats | None
) -> Callable[[Outputs], Flags] | None:
    """How to tell which elements of an action the graph clamped, (B, elements); None where it clamps none."""
    scores = spec.scores_of(tensor)
    if of.limits is None:
        return None
    if scores is None:
        before = tensor.name + UNCLAMPED
        return lambda outputs: np.not_equal(outputs[tensor.name], outputs[before]).reshape(len(outputs[before]), -1)
    if values is None:
        raise ValueError(f"action.{tensor.name}: expected the values that it is chosen from, to tell which are clamped")
    every = scaled(np.repeat(values[:, None], tensor.shape[1], axis=1), tensor, of)
    held = np.ascontiguousarray((clamped(every, tensor, of) != every).T)  # (elements, values)
    elements = np.arange(tensor.shape[1])
    return lambda outputs: np.asarray(held[elements, outputs[scores.name].argmax(axis=-1)], np.bool_)
