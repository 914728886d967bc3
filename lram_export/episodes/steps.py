"""The inputs of steps: random ones, recorded ones (``steps.npz``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.episodes.flights import columns
from lram_export.episodes.npz import ArrayHeader, Npz, open_npz
from lram_export.errors import LramError
from lram_export.flight.reader import is_flight, read_flight
from lram_export.runtimes.protocol import check_magnitude, first_beyond
from lram_export.spec.bounds import MOST_STEPS, RECORDING_EXPANSION
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import StepSpec
from lram_export.system.npz import save_npz

DEFAULT_STEPS = 64
FEEDBACK_STEPS = 32
"""Steps without, then with, a reward in the reward token."""
Inputs = tuple[NDArray[np.generic], ...]


@dataclass(frozen=True)
class StepSequence:
    """Inputs of N environment steps of a batch, scaled as the step graph takes them: name -> (N, B, ...), in the order
    of the specification."""

    inputs: Mapping[str, NDArray[np.generic]]

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.inputs[name]

    def __len__(self) -> int:
        return len(self["is_first"])

    def __iter__(self) -> Iterator[Inputs]:
        """The inputs of each step, in the order of :meth:`Runtime.step`."""
        return zip(*self.inputs.values(), strict=True)

    def map(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> StepSequence:
        """The same change to every input."""
        return StepSequence({name: change(values) for name, values in self.inputs.items()})


def joined(sequences: Sequence[StepSequence], join: Callable[[list[NDArray[Any]]], NDArray[Any]]) -> StepSequence:
    """One sequence of several: every input joined by itself."""
    return StepSequence({name: join([steps[name] for steps in sequences]) for name in sequences[0].inputs})


def random_steps(
    spec: StepSpec, task: TaskSpec | None, steps: int, seed: int = 0, episode: int | None = None
) -> StepSequence:
    """Random inputs that exercise everything a step can do.

    Observations are standard normal, pixels uniform. For :data:`FEEDBACK_STEPS` steps at a time the reward token is
    0 (reward feedback `none`), then for as many it carries normal rewards (`observed`). Every row starts an
    episode at step 0 and again every ``episode`` steps (default: once, half way), rows a step apart, so that
    single rows of a batch reset. Return-to-go wanders around the task's target. Nothing but the recurrent
    state changes its distribution over the run, so that an error that grows is an error of the state.
    """
    rng = np.random.default_rng(seed)
    batch = spec.batch_size
    drawn: dict[str, NDArray[Any]] = {}
    for tensor in spec.inputs:
        if tensor.name not in ("return_to_go", "reward", "is_first"):
            shape = (steps, *tensor.shape)
            pixels = tensor.dtype == "uint8"
            drawn[tensor.name] = (
                rng.integers(0, 256, shape, np.uint8) if pixels else rng.standard_normal(shape, np.float32)
            )
    step, row = np.arange(steps)[:, None], np.arange(batch)[None, :]
    period = episode or max(steps // 2, 1)
    is_first = (step == 0) | ((step > row) & ((step - row) % period == 0))
    drawn["is_first"] = is_first
    if task is not None:
        drawn["reward"] = rng.standard_normal((steps, batch), np.float32) * (step // FEEDBACK_STEPS % 2)
        drawn["return_to_go"] = task.target_return / task.reward_scale + _wander(rng, steps, batch)
    return StepSequence({tensor.name: drawn[tensor.name].astype(tensor.dtype) for tensor in spec.inputs})


def _wander(rng: np.random.Generator, steps: int, batch: int) -> NDArray[np.float64]:
    """(steps, batch) of a slow random process around 0 with a standard deviation of 0.35."""
    kicks = 0.05 * rng.standard_normal((steps, batch))
    for step in range(1, steps):
        kicks[step] += 0.99 * kicks[step - 1]
    return kicks


def check_recorded(arrays: Mapping[str, NDArray[Any]], spec: StepSpec) -> None:
    """Raise ValueError unless all values are finite, inputs are within their limits, and every row starts an episode
    at step 0."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name}: expected finite values, got {first_beyond(array)}")
    for name, limit in spec.limits.items():
        check_magnitude(name, arrays[name], limit)
    starts = arrays["is_first"]
    if not np.isin(starts, (0.0, 1.0)).all() or not starts[0].all():
        raise ValueError("is_first: expected 0 or 1, and 1 at step 0 of every row")


ENVIRONMENT, NAMES = "environment", "environments"
"""Arrays of a recording that says in which environments it was made."""


@dataclass(frozen=True)
class RecordedSteps(StepSequence):
    """Steps that say in which environment each was taken: ``environment`` (N,) counts in the names."""

    environment: NDArray[np.int32]
    environments: tuple[str, ...]


def save_steps(steps: StepSequence, path: str | Path) -> None:
    """Write ``steps.npz``; names of environments as bytes of UTF-8 with line breaks between, since it holds numbers."""
    arrays: dict[str, NDArray[Any]] = dict(steps.inputs)
    if isinstance(steps, RecordedSteps):
        names = np.frombuffer("\n".join(steps.environments).encode(), np.uint8)
        arrays |= {ENVIRONMENT: steps.environment, NAMES: names}
    with Path(path).open("wb") as file:
        save_npz(file, arrays)


def load_steps(path: str | Path, spec: StepSpec) -> StepSequence:
    """Read and check ``steps.npz``, of any batch size; or of a flight all that can be taken again.

    Raises:
        LramError: not such a file; or an array that does not fit, is not finite, beyond the limits of the
            specification, or does not start with an episode, naming the array, what was expected and what came.
    """
    if is_flight(path):
        return _flown(path, spec)
    names = [tensor.name for tensor in spec.inputs]
    try:
        with open_npz(Path(path), RECORDING_EXPANSION) as file:
            missing = [name for name in names if name not in file.headers]
            if missing:
                raise ValueError(f"{missing[0]}: missing; make the file with lram-export record")
            lead = file.headers["is_first"].shape
            if len(lead) != 2 or 0 in lead or lead[0] > MOST_STEPS:
                raise ValueError(f"is_first: expected shape (steps, rows), got {lead}")
            for tensor in spec.inputs:
                expected = ArrayHeader((*lead, *tensor.shape[1:]), np.dtype(tensor.dtype))
                if file.headers[tensor.name] != expected:
                    raise ValueError(f"{tensor.name}: expected {expected}, got {file.headers[tensor.name]}")
            arrays = {name: file.read(name) for name in names}
            environments = _environments(file, lead[0])
        check_recorded(arrays, spec)
    except ValueError as error:
        raise LramError(f"{path}: {error}") from None
    if environments is None:
        return StepSequence(arrays)
    return RecordedSteps(arrays, environment=environments[0], environments=environments[1])


def _flown(path: str | Path, spec: StepSpec) -> StepSequence:
    found, _ = columns(read_flight(path), spec)
    arrays = {tensor.name: found[tensor.name] for tensor in spec.inputs}
    try:
        check_recorded(arrays, spec)
    except ValueError as error:
        raise LramError(f"{path}: {error}") from None
    return StepSequence(arrays)


def _environments(file: Npz, steps: int) -> tuple[NDArray[np.int32], tuple[str, ...]] | None:
    """Of which environment each step is, and the names of all, where the file says so; raises ValueError."""
    if ENVIRONMENT not in file.headers or NAMES not in file.headers:
        return None
    expected, found = ArrayHeader((steps,), np.dtype(np.int32)), file.headers[ENVIRONMENT]
    if found != expected:
        raise ValueError(f"{ENVIRONMENT}: expected {expected}, got {found}")
    if file.headers[NAMES].dtype != np.uint8:
        raise ValueError(f"{NAMES}: expected uint8, got {file.headers[NAMES]}")
    environment = file.read(ENVIRONMENT)
    names = tuple(file.read(NAMES).tobytes().decode("utf-8", errors="replace").split("\n"))
    if environment.min() < 0 or environment.max() >= len(names):
        got = f"{environment.min()} to {environment.max()}"
        raise ValueError(f"{ENVIRONMENT}: expected numbers from 0 to {len(names) - 1}, got {got}")
    return environment, names
