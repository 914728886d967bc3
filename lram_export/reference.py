"""Recorded environment steps: inputs and what the reference model made of them (``reference.npz``).

With it a device verifies its own runtime without torch. All steps have a leading time dimension N:
``observation``, ``return_to_go``, ``reward``, ``is_first`` (inputs), ``action``, ``action_logits``
(expected outputs), and ``sample.<state name>``: evenly spaced elements of each state tensor after the last
step (whole states would be larger than the model's code for large models).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.bounds import MOST_STEPS
from lram_export.errors import BundleError
from lram_export.npz import ArrayHeader, open_npz
from lram_export.runtimes.protocol import Runtime, check_magnitude, first_beyond
from lram_export.specification import StepSpec
from lram_export.tasks import TaskSpec

REFERENCE_FILE = "reference.npz"
DEFAULT_STEPS = 64
FEEDBACK_STEPS = 32
"""Steps without, then with, a reward in the reward token."""

STATE_SAMPLE = 4096
"""Largest number of elements kept of one state tensor."""
_SAMPLE_PREFIX = "sample."
StepArguments = tuple[NDArray[np.generic], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class StepSequence:
    """Inputs of N environment steps of a batch, scaled as the step graph takes them."""

    observation: NDArray[np.generic]
    return_to_go: NDArray[np.float32]
    reward: NDArray[np.float32]
    is_first: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.observation)

    def __iter__(self) -> Iterator[StepArguments]:
        """The inputs of each step, in the order of :meth:`Runtime.step`."""
        return zip(self.observation, self.return_to_go, self.reward, self.is_first, strict=True)


@dataclass(frozen=True)
class Reference:
    """A recorded sequence with the reference model's outputs and samples of its last state."""

    inputs: StepSequence
    action: NDArray[np.generic]
    action_logits: NDArray[np.float32]
    state_samples: dict[str, NDArray[np.float32]]


def random_steps(spec: StepSpec, task: TaskSpec, steps: int, seed: int = 0, episode: int | None = None) -> StepSequence:
    """Random inputs that exercise everything a step can do.

    States are standard normal, pixels uniform. For :data:`FEEDBACK_STEPS` steps at a time the reward token is
    0 (reward feedback `none`), then for as many it carries normal rewards (`observed`). Every row starts an
    episode at step 0 and again every ``episode`` steps (default: once, half way), rows a step apart, so that
    single rows of a batch reset. Return-to-go wanders around the task's target. Nothing but the recurrent
    state changes its distribution over the run, so that an error that grows is an error of the state.
    """
    rng = np.random.default_rng(seed)
    batch = spec.batch_size
    shape = (steps, *spec.inputs[0].shape)
    observation: NDArray[np.generic]
    if task.observation == "image":
        observation = rng.integers(0, 256, shape, np.uint8)
    else:
        observation = rng.standard_normal(shape, np.float32)
    step, row = np.arange(steps)[:, None], np.arange(batch)[None, :]
    period = episode or max(steps // 2, 1)
    is_first = (step == 0) | ((step > row) & ((step - row) % period == 0))
    reward = rng.standard_normal((steps, batch), np.float32) * (step // FEEDBACK_STEPS % 2)
    return_to_go = task.target_return / task.reward_scale + _wander(rng, steps, batch)
    return StepSequence(
        observation, return_to_go.astype(np.float32), reward.astype(np.float32), is_first.astype(np.float32)
    )


def _wander(rng: np.random.Generator, steps: int, batch: int) -> NDArray[np.float64]:
    """(steps, batch) of a slow random process around 0 with a standard deviation of 0.35."""
    kicks = 0.05 * rng.standard_normal((steps, batch))
    for step in range(1, steps):
        kicks[step] += 0.99 * kicks[step - 1]
    return kicks


def record_reference(runtime: Runtime, inputs: StepSequence, advance: Callable[[int], None] | None = None) -> Reference:
    """Run a sequence from the initial state and keep what came out; ``advance`` is told of every step."""
    runtime.reset()
    actions, logits = [], []
    for arguments in inputs:
        output = runtime.step(*arguments)
        actions.append(output.action.copy())
        logits.append(output.action_logits.copy())
        if advance is not None:
            advance(1)
    return Reference(inputs, np.stack(actions), np.stack(logits), sample_state(runtime.state()))


def sample_state(state: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Evenly spaced elements of every tensor, at most :data:`STATE_SAMPLE` of each."""
    return {name: array.reshape(-1)[:: _stride(array.size)] for name, array in state.items()}


def save_reference(reference: Reference, path: Path) -> None:
    """Write ``reference.npz``."""
    arrays = {f.name: getattr(reference.inputs, f.name) for f in fields(StepSequence)}
    arrays |= {"action": reference.action, "action_logits": reference.action_logits}
    arrays |= {_SAMPLE_PREFIX + name: array for name, array in reference.state_samples.items()}
    np.savez_compressed(path, **arrays)


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
        inputs=StepSequence(**{f.name: arrays[f.name] for f in fields(StepSequence)}),
        action=arrays["action"],
        action_logits=arrays["action_logits"],
        state_samples={t.name: arrays[_SAMPLE_PREFIX + t.name] for t in spec.states},
    )


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


def _check_headers(headers: Mapping[str, ArrayHeader], spec: StepSpec) -> None:
    """Compare names, shapes and types with the specification."""
    shape = headers["observation"].shape if "observation" in headers else ()
    steps = shape[0] if shape else 0
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"observation: expected 1 to {MOST_STEPS} steps, got {steps}")
    expected = {t.name: ArrayHeader((steps, *t.shape), np.dtype(t.dtype)) for t in (*spec.inputs, *spec.outputs)}
    for t in spec.states:
        expected[_SAMPLE_PREFIX + t.name] = ArrayHeader((-(-t.size // _stride(t.size)),), np.dtype(t.dtype))
    odd = sorted(set(headers) ^ set(expected))
    if odd:
        raise ValueError(f"{odd[0]}: {'unknown array' if odd[0] in headers else 'missing'}")
    for name, header in expected.items():
        if headers[name] != header:
            raise ValueError(f"{name}: expected {header}, got {headers[name]}")


def _stride(size: int) -> int:
    """Distance of the samples of a state tensor."""
    return -(-size // STATE_SAMPLE)
