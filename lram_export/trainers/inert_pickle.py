"""Reads pickles of numbers: plain values and arrays of numpy. What else is in one stays a name and what it holds.

A pickle names functions and calls them. Here every name stands for something of this module, so nothing is imported
and nothing runs, whatever the file says.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

from lram_export.errors import CheckpointError, describe

MOST_BYTES = 64 << 20
"""Of a file of running means, which are a few numbers per element of an observation."""
ARRAY_FUNCTIONS = ("numpy._core.multiarray", "numpy.core.multiarray", "numpy._core.numeric", "numpy.core.numeric")


class Thing:
    """Stands for any other object: ``kind`` is what it is called, ``state`` what it holds by name."""

    kind = ""
    state: dict[str, Any]

    def __new__(cls, *_: object, **__: object) -> Thing:
        """Whatever the arguments are."""
        made = super().__new__(cls)
        made.state = {}
        return made

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            state = {**(state[0] or {}), **state[1]}
        if isinstance(state, dict):
            self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.state[str(key)] = value

    def append(self, value: object) -> None:
        """An element of a list, which nobody asks for."""

    def extend(self, values: object) -> None:
        """Elements of a list, which nobody asks for."""


def read_numbers(data: bytes, where: str) -> Any:
    """What a pickle holds: plain values, arrays, and :class:`Thing` in place of all else.

    Raises:
        CheckpointError: it is damaged, or too large for what it should be.
    """
    if len(data) > MOST_BYTES:
        raise CheckpointError(f"{where}: {len(data)} bytes, expected at most {MOST_BYTES}")
    try:
        _check(data)
        return _finished(_Reader(io.BytesIO(data)).load(), {})
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise CheckpointError(f"{where}: not a readable pickle of numbers ({describe(error)})") from None


def _check(data: bytes) -> None:
    """Raise ValueError where a pickle names a place that it could not need: memory would be taken up to there."""
    for code, argument, _ in pickletools.genops(data):
        if isinstance(argument, int) and ("PUT" in code.name or "GET" in code.name) and argument > len(data):
            raise ValueError(f"{code.name} of {argument}")


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy", "dtype"): _Dtype,
            ("numpy", "ndarray"): _Array,
            ("collections", "OrderedDict"): dict,
            **{(m, "_reconstruct"): _Array for m in ARRAY_FUNCTIONS},
            **{(m, "scalar"): _scalar for m in ARRAY_FUNCTIONS},
            **{(m, "_frombuffer"): _from_buffer for m in ARRAY_FUNCTIONS},
        }
        if (module, name) in known:
            return known[module, name]
        return type("Thing", (Thing,), {"kind": f"{module}.{name}"})


class _Dtype:
    """A type of plain numbers, as numpy pickles it: its code, and the order of its bytes."""

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])

    @property
    def numpy(self) -> np.dtype[Any]:
        found = np.dtype(self.code)
        if found.kind not in "fiub" or found.fields is not None:
            raise ValueError(f"an array of type {self.code}, expected numbers")
        return found.newbyteorder(">" if self.order == ">" else "<")


@dataclass
class _Held:
    """An array in its final form; in one of its own, so that numpy's ways of being filled are not within reach."""

    value: Any


class _Array:
    """An array of numpy on its way."""

    value: Any = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = _values(raw, dtype, shape, "F" if fortran else "C")


def _from_buffer(raw: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Held:
    return _Held(_values(raw, dtype, shape, order))


def _scalar(dtype: _Dtype, raw: bytes) -> _Held:
    return _Held(_values(raw, dtype, (), "C").item())


def _values(raw: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    if not isinstance(raw, bytes | bytearray):
        raise ValueError(f"an array of {type(raw).__name__}")
    kind, data = dtype.numpy, bytes(raw)
    if len(data) != math.prod(shape) * kind.itemsize:
        raise ValueError(f"an array of {len(data)} bytes for shape {shape} of {kind}")
    return np.frombuffer(data, kind).reshape(shape, order="F" if order == "F" else "C").astype(kind.newbyteorder("="))


def _finished(value: Any, done: dict[int, Any]) -> Any:
    """Arrays in place of what stood for them; ``done`` are the containers by identity, which may hold one another."""
    if isinstance(value, _Array | _Held):
        return value.value
    if not isinstance(value, Thing | dict | list | tuple):
        return value
    if id(value) in done:
        return done[id(value)]
    done[id(value)] = value
    if isinstance(value, Thing):
        value.state = {key: _finished(item, done) for key, item in value.state.items()}
    elif isinstance(value, dict):
        for key in list(value):
            value[key] = _finished(value[key], done)
    elif isinstance(value, list):
        value[:] = [_finished(item, done) for item in value]
    else:
        done[id(value)] = value = tuple(_finished(item, done) for item in value)
    return value
