"""The step API: what a control loop uses, the same for every target. numpy in, numpy out; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lram_export.bundle import Bundle
from lram_export.errors import UsageError
from lram_export.machine import suitable_threads
from lram_export.runtimes import Runtime, load_runtime, unavailable
from lram_export.runtimes.protocol import State, check_rows, first_not_finite
from lram_export.specification import StepSpec
from lram_export.tasks import TaskSpec


class Policy:
    """A running policy: keeps return-to-go and the recurrent state, one or more rows (robots) at a time.

    Not thread-safe: one control loop, one policy. Results do not depend on what ran before ``reset``.

    Attributes:
        runtime: the target's runtime, for callers that keep return-to-go themselves.
        task: what the policy was exported for.
        spec: names and shapes of a step.
    """

    def __init__(self, runtime: Runtime, task: TaskSpec) -> None:
        self.runtime, self.task = runtime, task
        self._closed = False
        self.spec: StepSpec = runtime.spec
        batch = self.spec.batch_size
        self._target = np.zeros(batch, np.float32)
        self._return_to_go = np.zeros(batch, np.float32)
        self._reward_token = np.zeros(batch, np.float32)
        self._is_first = np.ones(batch, np.float32)
        self._logits = np.zeros(self.spec.outputs[1].shape, np.float32)
        self.reset(target_return=task.target_return)

    @property
    def return_to_go(self) -> NDArray[np.float32]:
        """(B,) scaled return-to-go that the last :meth:`act` used (after a reset: that the next will use)."""
        return self._return_to_go.copy()

    @property
    def action_logits(self) -> NDArray[np.float32]:
        """(B, action_dim, 274), or (B, 18) for discrete actions: what the last :meth:`act` chose from; a copy."""
        return self._logits.copy()

    def reset(self, rows: Iterable[int] | None = None, target_return: ArrayLike | None = None) -> None:
        """Start an episode, in all rows or in the given ones; the others go on undisturbed.

        Args:
            rows: batch rows; default all.
            target_return: return to aim at from now on, in the environment's units: one number, or one per
                reset row; default: what the row aimed at before, at first the bundle's.

        Raises:
            ValueError: a row that does not exist, or a target that is not finite or of the wrong shape.
        """
        self._check_open()
        chosen = check_rows(rows, self.spec.batch_size)
        if target_return is not None:
            target = _as_float32("target_return", target_return)
            if target.shape not in ((), (len(chosen),)):
                raise ValueError(
                    f"target_return: expected one number or shape ({len(chosen)},), got shape {target.shape}"
                )
            self._target[chosen] = target / np.float32(self.task.reward_scale)
        self._return_to_go[chosen] = self._target[chosen]
        self._is_first[chosen] = 1.0
        self.runtime.reset(chosen)

    def act(self, observation: NDArray[np.generic], reward: ArrayLike | None = None) -> NDArray[np.generic]:
        """One environment step: the action for an observation.

        Args:
            observation: (observation_dim,) or, for batch B, (B, observation_dim), any float type; images
                (3, 64, 64) or (B, 3, 64, 64) uint8.
            reward: reward of the previous step in the environment's units, a number or (B,). It lowers the
                return-to-go; with reward feedback `observed` it also is the reward token, and is then
                required after an episode's first step. Rows at the first step of an episode ignore it.

        Returns:
            (action_dim,) or (B, action_dim) float32; (1,) or (B, 1) int64 for discrete actions. A new array.

        Raises:
            ValueError: naming the field, what was expected and what came; nothing has changed then.
        """
        self._check_open()
        batched, single = self._batched_observation(observation)
        rewards = self._checked_reward(reward)
        return_to_go = self._return_to_go
        if rewards is not None:
            return_to_go = np.where(self._is_first > 0, return_to_go, return_to_go - rewards)
            if self.task.reward_feedback == "observed":
                np.copyto(self._reward_token, rewards)
        output = self.runtime.step(batched, return_to_go, self._reward_token, self._is_first)
        self._return_to_go = return_to_go
        self._is_first.fill(0.0)
        self._logits = output.action_logits
        return output.action[0].copy() if single else output.action.copy()

    def state(self) -> State:
        """Everything a run needs to go on elsewhere: the recurrent state, ``return_to_go``, ``target_return``
        and ``is_first``, as named float32 arrays with the same names on every target."""
        self._check_open()
        return {
            **self.runtime.state(),
            "return_to_go": self._return_to_go.copy(),
            "target_return": self._target.copy(),
            "is_first": self._is_first.copy(),
        }

    def load_state(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Continue from a :meth:`state` of any target; raises ValueError and changes nothing if it does not fit."""
        self._check_open()
        own = {"return_to_go": self._return_to_go, "target_return": self._target, "is_first": self._is_first}
        for name, array in own.items():
            value = state.get(name)
            fits = isinstance(value, np.ndarray) and (value.shape, value.dtype) == (array.shape, array.dtype)
            if value is None or not fits or not np.isfinite(value).all():
                raise ValueError(f"{name}: expected finite float32 of shape {array.shape}, got {value!r}")
        if not np.isin(state["is_first"], (0.0, 1.0)).all():
            raise ValueError(f"is_first: expected 0 or 1, got {state['is_first'].tolist()}")
        self.runtime.load_state({k: v for k, v in state.items() if k not in own})
        self._return_to_go = np.array(state["return_to_go"], np.float32)
        self._target = np.array(state["target_return"], np.float32)
        self._is_first = np.array(state["is_first"], np.float32)

    def close(self) -> None:
        """Free what the runtime holds; safe to call twice, but nothing else works afterwards."""
        self._closed = True
        self._logits = self._logits.copy()  # they may lie in memory of the runtime
        self.runtime.close()

    def __enter__(self) -> Policy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the policy is closed; load it again")

    def _batched_observation(self, observation: NDArray[np.generic]) -> tuple[NDArray[np.generic], bool]:
        spec = self.spec.inputs[0]
        row = spec.shape[1:]
        shapes = [row, spec.shape] if self.spec.batch_size == 1 else [spec.shape]
        expected = f"observation: expected {spec.dtype} of shape {' or '.join(str(s) for s in shapes)}"
        if not isinstance(observation, np.ndarray):
            raise ValueError(f"{expected}, got {type(observation).__name__}")
        right_type = observation.dtype.kind == "f" if spec.dtype == "float32" else observation.dtype == spec.dtype
        if observation.shape not in shapes or not right_type:
            raise ValueError(f"{expected}, got {observation.dtype} of shape {observation.shape}")
        if observation.dtype.kind == "f" and not np.isfinite(observation).all():
            raise ValueError(f"observation: expected finite values, got {first_not_finite(observation)}")
        with np.errstate(over="ignore"):  # too large for float32: the runtime finds the infinity
            converted = observation.astype(spec.dtype, copy=False)
        return converted.reshape(spec.shape), observation.shape == row

    def _checked_reward(self, reward: ArrayLike | None) -> NDArray[np.float32] | None:
        batch = self.spec.batch_size
        if reward is None:
            if self.task.reward_feedback == "observed" and not self._is_first.all():
                raise ValueError(
                    "reward: required after the first step of an episode: this bundle was exported with "
                    "reward feedback 'observed'"
                )
            return None
        rewards = _as_float32("reward", reward)
        if rewards.shape == () and batch == 1:
            rewards = rewards.reshape(1)
        if rewards.shape != (batch,):
            raise ValueError(f"reward: expected shape ({batch},), got shape {rewards.shape}")
        return rewards / np.float32(self.task.reward_scale)


def _as_float32(name: str, values: ArrayLike) -> NDArray[np.float32]:
    """Numbers as float32, as the original has them; raises ValueError unless all are numbers and finite."""
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(values, dtype=np.float64).astype(np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected numbers, got {values!r}") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite values, got {first_not_finite(array)}")
    return array


def load_policy(path: str | Path, target: str | None = None, *, threads: int | None = None) -> Policy:
    """Open a bundle, check its files against their hashes, and load one target.

    Args:
        path: the bundle's folder.
        target: which artifact to run; default: the bundle's first whose runtime is installed.
        threads: threads of the runtime; default: 1 for small models, up to all usable cores for large ones. A control
            loop that shares the machine with other loops may want 1: it gives up some speed for latency that does
            not depend on who else needs a core.

    Raises:
        UsageError: no such bundle or target; TargetNotInstalledError with the pip command.
        BundleError: the bundle is damaged, or written by a newer version.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads: expected 1 or more, got {threads}")
    bundle = Bundle.open(path)
    chosen = target or default_target(bundle)
    bundle.artifact(chosen)
    manifest = bundle.manifest
    if threads is None:
        threads = suitable_threads(manifest.parameters, manifest.batch_size)
    runtime = load_runtime(chosen, bundle.load_artifact(chosen), threads)
    return Policy(runtime, manifest.task)


def default_target(bundle: Bundle) -> str:
    """The bundle's first target that runs here; its first, if none does."""
    for target in bundle.targets:
        if unavailable(target) is None:
            return target
    return bundle.targets[0]
