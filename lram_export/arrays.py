"""What callers give as numbers, as numpy: arrays, lists, numbers, tensors of other libraries. Imports none of those."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.errors import describe
from lram_export.runtimes.protocol import short

LONGEST_REASON = 120
"""Characters of a foreign message that fit into a line of ours."""
DEEPEST = 64
"""Dimensions that an array of numpy may have."""


def to_numpy(name: str, value: object) -> NDArray[Any]:
    """What numpy makes of a value; an array as it is, without what ``numpy.ma`` hides under a mask.

    Raises:
        ValueError: naming the field, where that is nothing: text, a ragged list, a tensor of a GPU or with a gradient.
    """
    if isinstance(value, str | bytes | bytearray):  # numpy would read the numbers of its letters
        raise ValueError(f"{name}: expected numbers, got {short(value)}")
    try:
        array = np.asarray(value)
    except Exception as error:  # who is asked for an __array__ raises whatever it likes
        raise ValueError(f"{name}: {_why(value, error)}") from None
    if array is not value and is_ragged(array):
        raise ValueError(f"{name}: {_ragged(value)}")
    return array


def is_ragged(array: NDArray[Any]) -> bool:
    """Whether numpy before 1.24 made this of lists that differ in length; later ones raise ValueError themselves."""
    return array.dtype.kind == "O" and any(_has_parts(element) for element in array.flat)


def numbers(name: str, value: object, *, missing: bool = False) -> NDArray[np.float64]:
    """Numbers of any shape, as float64.

    Args:
        name: what to call them.
        value: what :func:`to_numpy` reads.
        missing: whether None is taken, too, as NaN.

    Raises:
        ValueError: naming the field, where something is no number, or none that float64 holds.
    """
    array = to_numpy(name, value)
    if array.dtype.kind in "fiub":
        return array.astype(np.float64)
    if array.dtype.kind != "O":
        raise ValueError(f"{name}: expected numbers, got {short(value)}")
    found = np.empty(array.shape, np.float64)  # whole numbers of Python may be larger than any type of numpy holds
    for place in np.ndindex(array.shape):
        element = array[place]
        try:
            found[place] = np.nan if missing and element is None else _number(element)
        except Exception:  # who is asked for a __float__ likewise
            where = f" at {list(place)}" if place else ""
            raise ValueError(f"{name}: expected numbers, got {short(element)}{where}") from None
    return found


def _number(value: Any) -> float:
    """One number; raises whatever it likes for anything else, such as text that reads like one."""
    if isinstance(value, str | bytes | bytearray | np.complexfloating) or getattr(value, "ndim", 0) != 0:
        raise TypeError
    return float(value)


def _why(value: object, error: Exception) -> str:
    """Why numpy could not read a value, and what to pass instead."""
    tensor = _tensor_in(value)
    graded = bool(getattr(tensor, "requires_grad", False))
    device = str(getattr(tensor, "device", "cpu"))
    if graded or device != "cpu":
        found = " and ".join(
            [*(["that requires grad"] if graded else []), *([f"on {device}"] if device != "cpu" else [])]
        )
        calls = f"{'.detach()' if graded else ''}{'.cpu()' if device != 'cpu' else ''}"
        return f"expected numbers that numpy can read, got a tensor {found}; pass its {calls}"
    if "inhomogeneous" in str(error):
        return _ragged(value)
    reason = describe(error)
    reason = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}..."
    return f"expected numbers that numpy can read, got {type(value).__name__}: {reason}"


def _ragged(value: object) -> str:
    return f"expected an array, got a {type(value).__name__} whose parts differ in length"


def _has_parts(value: object) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _tensor_in(value: object) -> object | None:
    """The first tensor, as PyTorch has them, in a value or in lists of them."""
    for _ in range(DEEPEST):
        if not isinstance(value, list | tuple):
            break
        value = next((part for part in value if isinstance(part, list | tuple) or _is_tensor(part)), None)
    return value if _is_tensor(value) else None


def _is_tensor(value: object) -> bool:
    return not isinstance(value, type) and all(hasattr(value, name) for name in ("cpu", "detach", "device"))
