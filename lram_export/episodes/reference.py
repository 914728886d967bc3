"""Recorded environment steps: inputs and what the reference model made of them (``reference.npz``).

With it a device verifies its own runtime without torch. All steps have a leading time dimension N: the step's inputs
and expected outputs by name, and ``sample.<state name>``: evenly spaced elements of each state tensor after the last
step (whole states would be larger than the model's code for large models).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.episodes.npz import ArrayHeader, open_npz
from lram_export.episodes.steps import StepSequence, check_recorded
from lram_export.errors import BundleError
from lram_export.runtimes.protocol import Runtime
from lram_export.spec.bounds import MOST_STEPS
from lram_export.spec.tensors import StepSpec
from lram_export.system.npz import save_npz

REFERENCE_FILE = "reference.npz"
STATE_SAMPLE = 4096
"""Largest number of elements kept of one state tensor."""
_SAMPLE_PREFIX = "sample."


@dataclass(frozen=True)
class Reference:
    """A recorded sequence with the reference model's outputs and samples of its last state."""

    inputs: StepSequence
    outputs: Mapping[str, NDArray[Any]]
    state_samples: dict[str, NDArray[np.float32]]

    @property
    def action(self) -> NDArray[Any]:
        """(N, B, action_dim) float32, or (N, B, 1) int64 for discrete actions."""
        return self.outputs["action"]

    @property
    def action_logits(self) -> NDArray[np.float32]:
        """What the actions were chosen from, (N, B, action_dim, K) or (N, B, K)."""
        return self.outputs["action_logits"]

    def __iter__(self) -> Iterator[tuple[NDArray[Any], ...]]:
        """The outputs of each step, in the order of the specification."""
        return zip(*self.outputs.values(), strict=True)


def record_reference(runtime: Runtime, inputs: StepSequence, advance: Callable[[int], None] | None = None) -> Reference:
    """Run a sequence from the initial state and keep what came out; ``advance`` is told of every step."""
    runtime.reset()
    steps = []
    for arguments in inputs:
        steps.append([array.copy() for array in runtime.step(*arguments)])
        if advance is not None:
            advance(1)
    return Reference(inputs, stacked(runtime.spec, steps), sample_state(runtime.state()))


def stacked(spec: StepSpec, steps: Sequence[Sequence[NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The outputs of steps, each in the order of the specification, as one array per name: (N, B, ...)."""
    columns = zip(spec.outputs, zip(*steps, strict=True), strict=True)
    return {output.name: np.stack(column) for output, column in columns}


def sample_state(state: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Evenly spaced elements of every tensor, at most :data:`STATE_SAMPLE` of each."""
    return {name: array.reshape(-1)[:: sample_stride(array.size)] for name, array in state.items()}


def save_reference(reference: Reference, path: Path) -> None:
    """Write ``reference.npz``."""
    arrays: dict[str, NDArray[Any]] = dict(reference.inputs.inputs)
    arrays |= reference.outputs
    arrays |= {_SAMPLE_PREFIX + name: array for name, array in reference.state_samples.items()}
    save_npz(path, arrays)


def load_reference(path: Path, spec: StepSpec) -> Reference:
    """Read ``reference.npz`` and check every array against the specification; raises BundleError."""
    try:
        with open_npz(path) as file:
            _check_headers(file.headers, spec)
            arrays = {name: file.read(name) for name in file.headers}
        check_recorded(arrays, spec)
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from None
    return Reference(
        inputs=StepSequence({t.name: arrays[t.name] for t in spec.inputs}),
        outputs={t.name: arrays[t.name] for t in spec.outputs},
        state_samples={t.name: arrays[_SAMPLE_PREFIX + t.name] for t in spec.states},
    )


def _check_headers(headers: Mapping[str, ArrayHeader], spec: StepSpec) -> None:
    """Compare names, shapes and types with the specification."""
    first = spec.inputs[0].name
    shape = headers[first].shape if first in headers else ()
    steps = shape[0] if shape else 0
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"{first}: expected 1 to {MOST_STEPS} steps, got {steps}")
    expected = {t.name: ArrayHeader((steps, *t.shape), np.dtype(t.dtype)) for t in (*spec.inputs, *spec.outputs)}
    for t in spec.states:
        expected[_SAMPLE_PREFIX + t.name] = ArrayHeader((-(-t.size // sample_stride(t.size)),), np.dtype(t.dtype))
    odd = sorted(set(headers) ^ set(expected))
    if odd:
        raise ValueError(f"{odd[0]}: {'unknown array' if odd[0] in headers else 'missing'}")
    for name, header in expected.items():
        if headers[name] != header:
            raise ValueError(f"{name}: expected {header}, got {headers[name]}")


def sample_stride(size: int) -> int:
    """Distance of the samples of a state tensor."""
    return -(-size // STATE_SAMPLE)
