"""What every runtime offers, and the checks they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lram_export.spec.tensors import MAX_FLOAT32, StateSpec, StepSpec, TensorSpec

State = dict[str, NDArray[np.float32]]
LARGEST_STATE = 1e17
"""Largest magnitude of a state that is loaded, but for stabilizers: a step multiplies and adds up, and beyond this
float32 overflows. Steps of a trained policy stay far below it."""


class StepOutput:
    """Result of a step: the arrays of ``spec.outputs``, in that order and by name.

    They belong to the runtime and are overwritten by its next step: copy to keep.
    """

    __slots__ = ("arrays", "spec")

    def __init__(self, spec: StepSpec, arrays: Iterable[NDArray[Any]]) -> None:
        self.spec, self.arrays = spec, tuple(arrays)

    @classmethod
    def zeros(cls, spec: StepSpec) -> StepOutput:
        """Buffers of the specification's shapes and types, for a runtime to fill."""
        return cls(spec, (np.zeros(t.shape, t.dtype) for t in spec.outputs))

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return iter(self.arrays)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[next(i for i, tensor in enumerate(self.spec.outputs) if tensor.name == name)]

    @property
    def action(self) -> NDArray[Any]:
        """(B, action_dim) float32, or (B, 1) int64 for discrete actions."""
        return self["action"]

    @property
    def action_logits(self) -> NDArray[np.float32]:
        """What the action was chosen from: (B, action_dim, 274), or (B, 18) for discrete actions."""
        return self["action_logits"]


class Runtime(Protocol):
    """Runs steps and keeps the recurrent state where the target keeps it. One loop, one runtime.

    Every method but ``close`` raises RuntimeError where the runtime is closed, in use by another thread, or was made
    before this process forked. ``close`` does nothing in a forked process.

    A runtime that does not keep the state in float32 says so in an attribute ``state_format``, a string; it decides
    the tolerance. One whose steps leave work for the time after the action says so in an attribute ``leaves_work``, and
    one that asks for huge pages has a method ``memory`` that tells what came of it
    (:class:`~lram_export.system.huge_pages.MemoryOfPolicy`).
    """

    spec: StepSpec

    def step(self, *inputs: NDArray[np.generic]) -> StepOutput:
        """Advance every row by one environment step.

        Args:
            inputs: in the order, shapes and dtypes of ``spec.inputs``, as the step graph takes them: returns and
                rewards divided by the reward scale, ``is_first`` 1 for rows that start an episode, else 0.

        Raises:
            ValueError: naming the input, what was expected and what came; the state is as it was.
            StepError: the results are not finite. The state is as it was, or lost where the target updates it in
                place: then every step raises this until all rows are reset or a state is loaded.
            BundleError: the target's runtime failed.
        """

    def settle(self) -> None:
        """Do what the last step left for the time after its action, and return when it is done.

        Whatever next touches the state does it otherwise: no result depends on this call.
        """

    def state(self) -> State:
        """A copy of the recurrent state: named float32 arrays, the same names on every target.

        Raises:
            StepError: it was lost, see :meth:`step`.
        """

    def load_state(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Continue from a state of any target; raises ValueError and changes nothing if it does not fit."""

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """Fill the state of the given rows (default: all) with initial values, whatever it held.

        Args:
            rows: their numbers, or a mask with one boolean per row.

        Raises:
            ValueError: neither numbers of rows that there are nor a mask with one boolean per row.
        """

    def close(self) -> None:
        """Free what the runtime holds; it cannot be used afterwards. Safe to call twice."""


class StepInputs:
    """The inputs of a step in buffers that stay where they are, so that a runtime can bind them once."""

    def __init__(
        self, spec: StepSpec, arrays: Sequence[NDArray[Any]] | None = None, *, checked_by_engine: bool = False
    ) -> None:
        """Use the given arrays, of the specification's shapes and types, or make some.

        ``checked_by_engine``: values that are not finite, or no flags, are found by the engine that reads the buffers;
        :meth:`check` then says what they were.
        """
        self._specs = spec.inputs
        self.arrays = tuple(np.zeros(t.shape, t.dtype) for t in spec.inputs) if arrays is None else tuple(arrays)
        self._signatures = tuple((a.shape, a.dtype) for a in self.arrays)
        floats = [(i, t) for i, t in enumerate(spec.inputs) if t.dtype == "float32" and t.name != "is_first"]
        self._floats = [(i, t) for i, t in floats if t.limit is not None or not checked_by_engine]
        self._all_floats, self._checked_by_engine = floats, checked_by_engine

    def fill(self, *values: NDArray[np.generic]) -> None:
        """Check all inputs, then copy them in; raises ValueError before anything has changed."""
        if len(values) != len(self._specs):
            names = ", ".join(spec.name for spec in self._specs)
            raise ValueError(f"inputs: expected {len(self._specs)} ({names}), got {len(values)}")
        # numpy.ma hides what is under a mask
        plain = [v if type(v) is np.ndarray or not isinstance(v, np.ndarray) else np.asarray(v) for v in values]
        for value, signature, spec in zip(plain, self._signatures, self._specs, strict=True):
            if type(value) is not np.ndarray or (value.shape, value.dtype) != signature:
                raise ValueError(_mismatch(spec, value))
        for place, spec in self._floats:
            check_magnitude(spec.name, plain[place], spec.limit)
        if not self._checked_by_engine:
            _check_flags(plain[-1])
        for array, value in zip(self.arrays, plain, strict=True):
            array[...] = value

    def check(self) -> None:
        """Raise ValueError, naming the input, where a buffer holds what no step takes."""
        for place, spec in self._all_floats:
            check_magnitude(spec.name, self.arrays[place], spec.limit)
        _check_flags(self.arrays[-1])


def _check_flags(values: NDArray[np.generic]) -> None:
    is_first = values.tolist()
    if any(value not in (0.0, 1.0) for value in is_first):
        raise ValueError(f"is_first: expected 0 or 1, got {is_first}")


def check_state(spec: StepSpec, state: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise ValueError, naming the tensor, unless ``state`` has the right names, shapes, and values a step can take."""
    if not isinstance(state, Mapping):
        raise ValueError(f"state: expected named arrays, as state() returns them, got {type(state).__name__}")
    for tensor in spec.states:
        if tensor.name not in state:
            raise ValueError(f"{tensor.name}: missing from the state; is it the state of another model?")
        check_tensor(tensor, state[tensor.name])
    names = {t.name for t in spec.states}
    unknown = [name for name in state if name not in names]
    if unknown:
        raise ValueError(f"{unknown[0]}: not part of this model's state")


def check_tensor(tensor: TensorSpec | StateSpec, value: object) -> None:
    """Raise ValueError, naming the tensor, unless ``value`` is a float32 array of its shape that a step can take."""
    if not isinstance(value, np.ndarray) or value.shape != tensor.shape or value.dtype != np.float32:
        raise ValueError(_mismatch(tensor, value))
    limit = tensor.limit
    if isinstance(tensor, StateSpec) and tensor.role == "index":
        _check_index(tensor, value)
    elif isinstance(tensor, StateSpec) and tensor.role != "stabilizer":
        limit = LARGEST_STATE
    check_magnitude(tensor.name, np.asarray(value), limit)


def _check_index(tensor: StateSpec, value: NDArray[np.float32]) -> None:
    """Any other value would name no entry: nothing would be replaced, and the policy would act by what is long past."""
    most = LARGEST_STATE if tensor.limit is None else tensor.limit
    wrong = ~((value >= 0) & (value <= most) & (value == np.floor(value)))
    if wrong.any():
        raise ValueError(f"{tensor.name}: expected whole numbers from 0 to {most:g}, got {value[wrong].flat[0]:g}")


def check_magnitude(name: str, value: NDArray[Any], limit: float | None = None) -> None:
    """Raise ValueError, naming the element, unless all are finite and within ``limit`` (default: float32)."""
    limit = MAX_FLOAT32 if limit is None else limit
    if value.size == 0:
        return
    # one product instead of two passes: no element is larger than the norm; with NaN nothing is true. vdot never warns
    if float(np.vdot(value, value)) <= min(limit, 1e15) ** 2 or (
        -limit <= float(value.min()) and float(value.max()) <= limit
    ):
        return
    expected = "expected finite values"
    if np.isfinite(value).all():
        expected += f" of magnitude up to {limit:.2g} (beyond, float32 overflows)"
    raise ValueError(f"{name}: {expected}, got {first_beyond(value, limit)}")


def check_rows(rows: Iterable[int] | None, batch_size: int) -> list[int]:
    """Batch rows as a list of numbers (None: all).

    Raises:
        ValueError: neither numbers of rows that there are nor a mask with one boolean per row.
    """
    if rows is None:
        return list(range(batch_size))
    expected = f"rows: expected numbers from 0 to {batch_size - 1} or a mask of {batch_size} booleans"
    if isinstance(rows, str | bytes | bytearray | Mapping) or not isinstance(rows, Iterable):
        raise ValueError(f"{expected}, got {short(rows)}")
    if isinstance(rows, np.ndarray) and (rows.ndim != 1 or rows.dtype.kind not in "iub"):
        raise ValueError(f"{expected}, got {rows.dtype} of shape {rows.shape}")
    values = list(rows)
    if values and all(isinstance(value, bool | np.bool_) for value in values):
        if len(values) != batch_size:
            raise ValueError(f"{expected}, got {len(values)} booleans")
        return [row for row, chosen in enumerate(values) if chosen]
    for value in values:
        is_number = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not is_number or not 0 <= value < batch_size:
            raise ValueError(f"{expected}, got {short(value)}")
    return [int(value) for value in values]


def first_beyond(value: NDArray[np.generic], limit: float = MAX_FLOAT32) -> str:
    """Describe the first element that is NaN or beyond a limit: ``nan at [0, 3]``."""
    index = np.argwhere(~(np.abs(value) <= limit))[0].tolist()
    found = f"{float(value[tuple(index)]):.6g}"
    return f"{found} at {index}" if index else found


def short(value: object) -> str:
    """A value in one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else f"{text[:40]}... ({type(value).__name__})"


def _mismatch(spec: TensorSpec | StateSpec, value: object) -> str:
    expected = f"expected {spec.dtype} of shape {spec.shape}"
    if isinstance(value, np.ndarray):
        return f"{spec.name}: {expected}, got {value.dtype} of shape {value.shape}"
    return f"{spec.name}: {expected}, got {type(value).__name__}"
