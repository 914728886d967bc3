"""`lram-export run`: steps over a recorded observation file."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import MAGIC_PREFIX
from numpy.typing import NDArray

from lram_export.episodes.flights import columns
from lram_export.episodes.npz import open_npz
from lram_export.errors import LramError, StepError, UsageError
from lram_export.flight.reader import is_flight, read_flight
from lram_export.policy import Policy, observations_of
from lram_export.progress import Advance
from lram_export.spec.bounds import RECORDING_EXPANSION
from lram_export.spec.tensors import StepSpec

ARRAYS = ("observations", "rewards", "is_first")
"""Arrays of a recorded observation file."""


@dataclass(frozen=True)
class Recording:
    """A recorded sequence of N steps of B rows.

    ``observations`` (N, B, ...) by the names of the inputs; ``rewards`` (N, B), the reward each step brought, or None;
    ``is_first`` (N, B) bool, where an episode starts.
    """

    observations: Mapping[str, NDArray[np.generic]]
    rewards: NDArray[np.float32] | None
    is_first: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.is_first)


@dataclass(frozen=True)
class RunResult:
    """What :meth:`Policy.act` returned at every step, the other outputs by name, and how many seconds each step took.
    Batch 1 has no batch dimension, a discrete action none of its own."""

    actions: NDArray[np.generic]
    others: dict[str, NDArray[np.generic]]
    return_to_go: NDArray[np.float32]
    seconds: NDArray[np.float64]


def read_recording(path: str | Path, spec: StepSpec) -> Recording:
    """Read an ``.npz`` with ``observations`` and, optionally, ``rewards`` and ``is_first``; or a flight.

    Of a policy with several observations the file has one array for each, under its name.
    Arrays lead with time, then (for bundles of batch B > 1, optional for 1) with the batch.

    Raises:
        LramError: not such a file, a misspelt name, or arrays that do not fit together, naming the array.
    """
    if is_flight(path):
        return _flown(path, spec)
    path, names = Path(path), [tensor.name for tensor in observations_of(spec)]
    observed = dict.fromkeys(names, ARRAYS[0]) if len(names) == 1 else {name: name for name in names}
    try:
        with path.open("rb") as start:
            if start.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX:
                raise LramError(
                    f"{path}: one array, expected an .npz of named ones; "
                    f"write it with np.savez(file, observations=array)"
                )
        with open_npz(path, RECORDING_EXPANSION) as file:
            known = (*observed.values(), *ARRAYS[1:])
            _check_names(path, list(file.headers), known)
            arrays = {name: file.read(name) for name in known if name in file.headers}
    except OSError as error:
        raise LramError(f"{path}: not a readable .npz file ({error.strerror})") from None
    except ValueError as error:
        raise LramError(f"{path}: {error}") from None
    missing = [name for name in observed.values() if name not in arrays]
    if missing:
        raise LramError(f"{path}: {missing[0]}: missing; expected an array of shape (steps, ...)")
    lengths = {name: len(arrays[name]) if arrays[name].ndim else 0 for name in observed.values()}
    steps = next(iter(lengths.values()))
    for name, length in lengths.items():
        if length == 0:
            raise LramError(f"{path}: {name}: expected at least one step, got shape {arrays[name].shape}")
        if length != steps:
            raise LramError(f"{path}: {name}: expected {steps} steps, as in {next(iter(lengths))}, got {length}")
    batch_size = spec.batch_size

    def per_row(name: str) -> NDArray[np.generic] | None:
        array: NDArray[np.generic] | None = arrays.get(name)
        if array is None:
            return None
        if batch_size == 1 and array.shape == (steps,):
            array = array[:, None]
        if array.shape != (steps, batch_size) or array.dtype.kind not in "fiub":
            raise LramError(
                f"{path}: {name}: expected numbers of shape ({steps}, {batch_size}), "
                f"got {array.dtype} of shape {array.shape}"
            )
        return array

    rewards, is_first = per_row("rewards"), per_row("is_first")
    starts = np.zeros((steps, batch_size), np.bool_) if is_first is None else is_first != 0
    starts[0] = True
    observations = {name: arrays[array] for name, array in observed.items()}
    return Recording(observations, None if rewards is None else rewards.astype(np.float32), starts)


def _flown(path: str | Path, spec: StepSpec) -> Recording:
    """What was observed on a flight, at the steps that can be taken again."""
    found, rewards = columns(read_flight(path), spec)
    observed = {tensor.name: found[tensor.name] for tensor in observations_of(spec)}
    return Recording(observed, rewards, found["is_first"] != 0)


def check_not_overwritten(observations: Path, output: Path) -> None:
    """Raise UsageError if the output would replace the observations it is made from."""
    if observations.resolve() == output.resolve():
        raise UsageError(f"{output}: is the file of --observations, which it would replace; choose another --output")


def _check_names(path: Path, names: list[str], known: Sequence[str]) -> None:
    """Raise LramError for a name that is nearly one of ours; other arrays may be in the file, too."""
    for name in names:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if near and name not in known and near[0] not in names:
            raise LramError(f"{path}: {name}: unknown array, did you mean '{near[0]}'?")


def run_recording(policy: Policy, recording: Recording, advance: Advance = lambda amount: None) -> RunResult:
    """Step through a recording; the reward of each step is given to the next.

    Raises:
        LramError: a step's input is wrong, or its results are not finite (StepError), naming the step.
    """
    actions, returns, seconds = [], [], []
    others: dict[str, list[NDArray[np.generic]]] = {tensor.name: [] for tensor in policy.spec.outputs[1:]}
    for step in range(len(recording)):
        observation = {name: values[step] for name, values in recording.observations.items()}
        rows = np.flatnonzero(recording.is_first[step])
        if len(rows):
            policy.reset(rows.tolist())
        reward = None if recording.rewards is None or step == 0 else recording.rewards[step - 1]
        start = time.perf_counter()
        try:
            action = policy.act(observation, reward)
        except ValueError as error:
            raise LramError(f"step {step}: {error}") from None
        except StepError as error:
            raise StepError(f"step {step}: {error}") from None
        seconds.append(time.perf_counter() - start)
        actions.append(action)
        given = policy.outputs
        for name, values in others.items():
            values.append(given[name])
        returns.append(policy.return_to_go)
        advance(1)
    single = policy.spec.batch_size == 1
    first = policy.spec.outputs[0]
    alone = () if first.dtype == "int64" and first.shape[1:] == (1,) else first.shape[1:]  # as act returns it
    return RunResult(
        actions=np.stack(actions).reshape(len(actions), *alone) if single else np.stack(actions),
        others={name: np.stack(v)[:, 0] if single else np.stack(v) for name, v in others.items()},
        return_to_go=np.stack(returns)[:, 0] if single else np.stack(returns),
        seconds=np.array(seconds),
    )
