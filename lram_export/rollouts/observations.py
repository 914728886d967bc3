"""`lram-export run`: steps over a recorded observation file."""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import MAGIC_PREFIX
from numpy.typing import NDArray

from lram_export.episodes.npz import open_npz
from lram_export.errors import LramError, StepError, UsageError
from lram_export.policy import Policy
from lram_export.progress import Advance
from lram_export.spec.bounds import RECORDING_EXPANSION

ARRAYS = ("observations", "rewards", "is_first")
"""Arrays of a recorded observation file."""


@dataclass(frozen=True)
class Recording:
    """A recorded sequence of N steps of B rows.

    ``observations`` (N, B, ...); ``rewards`` (N, B), the reward each step brought, or None;
    ``is_first`` (N, B) bool, where an episode starts.
    """

    observations: NDArray[np.generic]
    rewards: NDArray[np.float32] | None
    is_first: NDArray[np.bool_]


@dataclass(frozen=True)
class RunResult:
    """Outputs of every step, and how many seconds each took. Batch 1 has no batch dimension, a discrete action none of
    its own."""

    actions: NDArray[np.generic]
    action_logits: NDArray[np.float32]
    return_to_go: NDArray[np.float32]
    seconds: NDArray[np.float64]


def read_recording(path: Path, batch_size: int) -> Recording:
    """Read an ``.npz`` with ``observations`` and, optionally, ``rewards`` and ``is_first``.

    Arrays lead with time, then (for bundles of batch B > 1, optional for 1) with the batch.

    Raises:
        LramError: not such a file, a misspelt name, or arrays that do not fit together, naming the array.
    """
    try:
        with path.open("rb") as start:
            if start.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX:
                raise LramError(
                    f"{path}: one array, expected an .npz of named ones; "
                    f"write it with np.savez(file, observations=array)"
                )
        with open_npz(path, RECORDING_EXPANSION) as file:
            _check_names(path, list(file.headers))
            arrays = {name: file.read(name) for name in ARRAYS if name in file.headers}
    except OSError as error:
        raise LramError(f"{path}: not a readable .npz file ({error.strerror})") from None
    except ValueError as error:
        raise LramError(f"{path}: {error}") from None
    if "observations" not in arrays:
        raise LramError(f"{path}: observations: missing; expected an array of shape (steps, ...)")
    observations = arrays["observations"]
    steps = len(observations) if observations.ndim else 0
    if steps == 0:
        raise LramError(f"{path}: observations: expected at least one step, got shape {observations.shape}")

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
    return Recording(observations, None if rewards is None else rewards.astype(np.float32), starts)


def check_not_overwritten(observations: Path, output: Path) -> None:
    """Raise UsageError if the output would replace the observations it is made from."""
    if observations.resolve() == output.resolve():
        raise UsageError(f"{output}: is the file of --observations, which it would replace; choose another --output")


def _check_names(path: Path, names: list[str]) -> None:
    """Raise LramError for a name that is nearly one of ours; other arrays may be in the file, too."""
    for name in names:
        near = difflib.get_close_matches(name, ARRAYS, n=1, cutoff=0.8)
        if near and name not in ARRAYS and near[0] not in names:
            raise LramError(f"{path}: {name}: unknown array, did you mean '{near[0]}'?")


def run_recording(policy: Policy, recording: Recording, advance: Advance = lambda amount: None) -> RunResult:
    """Step through a recording; the reward of each step is given to the next.

    Raises:
        LramError: a step's input is wrong, or its results are not finite (StepError), naming the step.
    """
    actions, logits, returns, seconds = [], [], [], []
    for step, observation in enumerate(recording.observations):
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
        logits.append(policy.action_logits)
        returns.append(policy.return_to_go)
        advance(1)
    single = policy.spec.batch_size == 1
    alone = () if policy.task.action == "discrete" else policy.spec.outputs[0].shape[1:]
    return RunResult(
        actions=np.stack(actions).reshape(len(actions), *alone) if single else np.stack(actions),
        action_logits=np.stack(logits)[:, 0] if single else np.stack(logits),
        return_to_go=np.stack(returns)[:, 0] if single else np.stack(returns),
        seconds=np.array(seconds),
    )
