"""What every runtime offers, and the checks they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lram_export.config import ModelConfig
from lram_export.quantized import QuantizedFile
from lram_export.specification import StepSpec, TensorSpec
from lram_export.tasks import TaskSpec

State = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class LoadedArtifact:
    """One target's folder in a bundle (hashes already checked), with what the manifest says about it.

    ``digest`` tells the content of its files from that of any others; ``activations`` is the format to compute
    in, ``platforms`` what its files were compiled for. ``quantized`` gives the bundle's quantized matrices to targets
    that do not hold them in files of their own.
    """

    directory: Path
    spec: StepSpec
    config: ModelConfig
    task: TaskSpec
    digest: str
    activations: str
    quantized: QuantizedFile | None = None
    platforms: tuple[str, ...] = ()


class StepOutput(NamedTuple):
    """Result of a step. The arrays belong to the runtime and are overwritten by its next step: copy to keep.

    ``action``: (B, action_dim) float32, or (B, 1) int64 for discrete actions. ``action_logits``: what the
    action was chosen from, (B, action_dim, 274), or (B, 18) for discrete actions.
    """

    action: NDArray[np.float32] | NDArray[np.int64]
    action_logits: NDArray[np.float32]


class Runtime(Protocol):
    """Runs steps and keeps the recurrent state where the target keeps it. Not thread-safe: one loop, one runtime.

    A runtime that does not keep the state in float32 says so in an attribute ``state_format``, a string; it decides
    the tolerance.
    """

    spec: StepSpec

    def step(
        self,
        observation: NDArray[np.generic],
        return_to_go: NDArray[np.float32],
        reward: NDArray[np.float32],
        is_first: NDArray[np.float32],
    ) -> StepOutput:
        """Advance every row by one environment step.

        Args:
            observation: (B, observation_dim) float32, or (B, C, H, W) uint8.
            return_to_go: (B,) float32, divided by the reward scale.
            reward: (B,) float32, divided by the reward scale; of the previous step.
            is_first: (B,) float32, 1 for rows that start an episode, else 0.

        Raises:
            ValueError: naming the input, what was expected and what came; the state is as it was.
        """

    def state(self) -> State:
        """A copy of the recurrent state: named float32 arrays, the same names on every target."""

    def load_state(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Continue from a state of any target; raises ValueError and changes nothing if it does not fit."""

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """Fill the state of the given rows (default: all) with initial values, whatever it held."""

    def close(self) -> None:
        """Free what the runtime holds; it cannot be used afterwards. Safe to call twice."""


class StepInputs:
    """The four inputs of a step in buffers that stay where they are, so that a runtime can bind them once."""

    def __init__(self, spec: StepSpec, arrays: Sequence[NDArray[Any]] | None = None) -> None:
        """Use the given arrays, of the specification's shapes and types, or make some."""
        self._specs = spec.inputs
        self.arrays = tuple(np.zeros(t.shape, t.dtype) for t in spec.inputs) if arrays is None else tuple(arrays)
        self._signatures = tuple((a.shape, a.dtype) for a in self.arrays)

    def fill(self, *values: NDArray[np.generic]) -> None:
        """Check all inputs, then copy them in; raises ValueError before anything has changed."""
        for spec, signature, value in zip(self._specs, self._signatures, values, strict=True):
            if not isinstance(value, np.ndarray) or (value.shape, value.dtype) != signature:
                raise ValueError(_mismatch(spec, value))
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise ValueError(f"{spec.name}: expected finite values, got {first_not_finite(value)}")
        is_first = values[3]
        if ((is_first != 0) & (is_first != 1)).any():
            raise ValueError(f"is_first: expected 0 or 1, got {is_first.tolist()}")
        for array, value in zip(self.arrays, values, strict=True):
            np.copyto(array, value, casting="no")


def check_state(spec: StepSpec, state: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise ValueError, naming the tensor, unless ``state`` has exactly the right names, shapes and finite values."""
    for tensor in spec.states:
        if tensor.name not in state:
            raise ValueError(f"{tensor.name}: missing from the state; is it the state of another model?")
        value = state[tensor.name]
        if not isinstance(value, np.ndarray) or value.shape != tensor.shape or value.dtype != np.float32:
            raise ValueError(_mismatch(tensor, value))
        if not np.isfinite(value).all():
            raise ValueError(f"{tensor.name}: expected finite values, got {first_not_finite(value)}")
    unknown = sorted(set(state) - {t.name for t in spec.states})
    if unknown:
        raise ValueError(f"{unknown[0]}: not part of this model's state")


def check_rows(rows: Iterable[int] | None, batch_size: int) -> list[int]:
    """Batch rows as a list (None: all); raises ValueError for a row that does not exist."""
    if rows is None:
        return list(range(batch_size))
    checked = [int(row) for row in rows]
    wrong = [row for row in checked if not 0 <= row < batch_size]
    if wrong:
        raise ValueError(f"rows: expected 0 to {batch_size - 1}, got {wrong[0]}")
    return checked


def first_not_finite(value: NDArray[np.generic]) -> str:
    """Describe the first NaN or infinite element: ``nan at [0, 3]``."""
    index = np.argwhere(~np.isfinite(value))[0].tolist()
    return f"{value[tuple(index)]} at {index}"


def _mismatch(spec: TensorSpec, value: object) -> str:
    expected = f"expected {spec.dtype} of shape {spec.shape}"
    if isinstance(value, np.ndarray):
        return f"{spec.name}: {expected}, got {value.dtype} of shape {value.shape}"
    return f"{spec.name}: {expected}, got {type(value).__name__}"
