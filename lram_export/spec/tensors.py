"""Names, shapes, dtypes and initial values of everything that enters or leaves one environment step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_FLOAT32 = float.fromhex("0x1.fffffep127")
"""The largest float32 number."""


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor.

    ``initial`` is the value every element has at the start of an episode (state only). ``limit`` is the largest
    magnitude with which the step's arithmetic stays within float32 (float32 inputs only); None: not known.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    initial: float | None = None
    limit: float | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for extent in self.shape:
            size *= extent
        return size

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``initial`` and ``limit`` only where there is one."""
        data: dict[str, Any] = {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}
        optional = {"initial": self.initial, "limit": self.limit}
        return {**data, **{name: value for name, value in optional.items() if value is not None}}


@dataclass(frozen=True)
class StepSpec:
    """The interface of one step graph.

    ``inputs`` are ``observation``, ``return_to_go``, ``reward`` and ``is_first``; ``outputs`` are ``action``
    and ``action_logits``; ``states`` are named ``state.<block>.<part>`` and come out again, in the same order
    and shape, as ``next_state.<block>.<part>``. All have a leading batch dimension of ``batch_size`` rows.
    """

    batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[TensorSpec, ...]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of all graph inputs, in order."""
        return tuple(t.name for t in (*self.inputs, *self.states))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of all graph outputs, in order."""
        return tuple(t.name for t in self.outputs) + tuple(next_name(t.name) for t in self.states)

    @property
    def limits(self) -> dict[str, float]:
        """Name of an input -> its ``limit``, of those that have one."""
        return {t.name: t.limit for t in self.inputs if t.limit is not None}

    def with_limits(self, limits: Mapping[str, float]) -> StepSpec:
        """The same with these limits of inputs."""
        inputs = tuple(dataclasses.replace(t, limit=limits.get(t.name)) for t in self.inputs)
        return dataclasses.replace(self, inputs=inputs)

    @property
    def state_bytes(self) -> int:
        """Size of the recurrent state of the whole batch in bytes (float32)."""
        return 4 * sum(t.size for t in self.states)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as the manifest holds them."""
        return {
            "batch_size": self.batch_size,
            "inputs": [t.to_json() for t in self.inputs],
            "outputs": [t.to_json() for t in self.outputs],
            "state": [t.to_json() for t in self.states],
        }


def next_name(state_name: str) -> str:
    """Name of the output that carries a state tensor out: ``state.0.C`` -> ``next_state.0.C``."""
    return f"next_{state_name}"


def state_name(block: int, part: str) -> str:
    """Name of a state tensor: ``state.<block>.<part>``."""
    return f"state.{block}.{part}"


Floats = NDArray[np.float32]


def array(tensor: Any) -> Floats:
    """A parameter of the step graph as numpy."""
    values: Floats = tensor.detach().numpy()
    return values
