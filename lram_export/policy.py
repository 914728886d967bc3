"""The step API: what a control loop uses, the same for every target. numpy in, numpy out; no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lram_export.bundle.bundle import Bundle
from lram_export.errors import UsageError
from lram_export.runtimes import Runtime, load_runtime, unavailable
from lram_export.runtimes.guard import Guard
from lram_export.runtimes.protocol import State, check_magnitude, check_rows, check_tensor, short
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import MAX_FLOAT32, StepSpec
from lram_export.system.machine import suitable_threads


class Policy:
    """A running policy: keeps return-to-go and the recurrent state, one or more rows (robots) at a time.

    One control loop, one policy: every method but ``close`` raises RuntimeError where the policy is closed, in use by
    another thread, or was loaded before this process forked. Results do not depend on what ran before ``reset``.

    Attributes:
        runtime: the target's runtime, for callers that keep return-to-go themselves.
        task: what the policy was exported for.
        spec: names and shapes of a step.
    """

    def __init__(self, runtime: Runtime, task: TaskSpec) -> None:
        self.runtime, self.task = runtime, task
        self._guard = Guard(self)
        self.spec: StepSpec = runtime.spec
        batch = self.spec.batch_size
        self._target = np.zeros(batch, np.float32)
        self._return_to_go = np.zeros(batch, np.float32)
        self._no_reward = np.zeros(batch, np.float32)
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
            rows: numbers of batch rows, or a mask with one boolean per row; default all.
            target_return: return to aim at from now on, in the environment's units: one number, or one per
                reset row; default: what the row aimed at before, at first the bundle's.

        Raises:
            ValueError: a row that does not exist, a mask of another length, or a target that is not finite, too large
                or of the wrong shape; nothing has changed then.
        """
        with self._guard:
            chosen = check_rows(rows, self.spec.batch_size)
            target = self._target[chosen]
            if target_return is not None:
                given = self._scaled("target_return", target_return, self.spec.inputs[1].limit)
                if given.shape not in ((), (len(chosen),)):
                    raise ValueError(
                        f"target_return: expected one number or shape ({len(chosen)},), got shape {given.shape}"
                    )
                target = given
            self.runtime.reset(chosen)
            self._target[chosen] = target
            self._return_to_go[chosen] = self._target[chosen]
            self._is_first[chosen] = 1.0

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
            StepError: the results are not finite. Nothing has changed, or the recurrent state is lost: then every
                step raises this until all rows are reset or a state is loaded.
            BundleError: the target's runtime failed.
        """
        with self._guard:
            batched, single = self._batched_observation(observation)
            rewards = self._checked_reward(reward)
            return_to_go, token = self._return_to_go, self._no_reward
            if rewards is not None:
                return_to_go = np.where(self._is_first > 0, return_to_go, return_to_go - rewards)
                if self.task.reward_feedback == "observed":
                    token = rewards
            output = self.runtime.step(batched, return_to_go, token, self._is_first)
            self._return_to_go = return_to_go
            self._is_first.fill(0.0)
            np.copyto(self._logits, output.action_logits)
            return output.action[0].copy() if single else output.action.copy()

    def state(self) -> State:
        """Everything a run needs to go on elsewhere: the recurrent state, ``return_to_go``, ``target_return``
        and ``is_first``, as named float32 arrays with the same names on every target."""
        with self._guard:
            return {
                **self.runtime.state(),
                "return_to_go": self._return_to_go.copy(),
                "target_return": self._target.copy(),
                "is_first": self._is_first.copy(),
            }

    def load_state(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Continue from a :meth:`state` of any target; raises ValueError and changes nothing if it does not fit."""
        with self._guard:
            if not isinstance(state, Mapping):
                raise ValueError(f"state: expected named arrays, as state() returns them, got {type(state).__name__}")
            _, return_to_go, _, is_first = self.spec.inputs
            own = {t.name: t for t in (return_to_go, dataclasses.replace(return_to_go, name="target_return"), is_first)}
            for name, tensor in own.items():
                if name not in state:
                    raise ValueError(f"{name}: missing from the state; is it what state() of a policy returned?")
                check_tensor(tensor, state[name])
            if not np.isin(state["is_first"], (0.0, 1.0)).all():
                raise ValueError(f"is_first: expected 0 or 1, got {state['is_first'].tolist()}")
            self.runtime.load_state({k: v for k, v in state.items() if k not in own})
            self._return_to_go = np.array(state["return_to_go"], np.float32)
            self._target = np.array(state["target_return"], np.float32)
            self._is_first = np.array(state["is_first"], np.float32)

    def close(self) -> None:
        """Free what the runtime holds; safe to call twice, but nothing else works afterwards.

        Raises:
            RuntimeError: another thread is using the policy.
        """
        if self._guard.close():
            self.runtime.close()

    def __enter__(self) -> Policy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
        values = np.asarray(observation)  # numpy.ma hides what is under a mask
        if spec.dtype == "float32":
            check_magnitude("observation", values, spec.limit)
        return values.astype(spec.dtype, copy=False).reshape(spec.shape), observation.shape == row

    def _checked_reward(self, reward: ArrayLike | None) -> NDArray[np.float32] | None:
        batch = self.spec.batch_size
        if reward is None:
            if self.task.reward_feedback == "observed" and not self._is_first.all():
                raise ValueError(
                    "reward: required after the first step of an episode: this bundle was exported with "
                    "reward feedback 'observed'"
                )
            return None
        rewards = self._scaled("reward", reward, self.spec.inputs[2].limit)
        if rewards.shape == () and batch == 1:
            rewards = rewards.reshape(1)
        if rewards.shape != (batch,):
            raise ValueError(f"reward: expected shape ({batch},), got shape {rewards.shape}")
        return rewards

    def _scaled(self, name: str, values: ArrayLike, limit: float | None) -> NDArray[np.float32]:
        """What came in the environment's units, divided by the reward scale as the original does: in float32."""
        scale = self.task.reward_scale
        numbers = _numbers(name, values)
        check_magnitude(name, numbers, min((MAX_FLOAT32 if limit is None else limit) * scale, MAX_FLOAT32))
        return numbers.astype(np.float32) / np.float32(scale)


def _numbers(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Numbers as an array; raises ValueError unless all are numbers (text that reads like one is none)."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "fiubO" or any(isinstance(value, str | bytes) for value in _objects(array)):
            raise TypeError
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}: expected numbers, got {short(values)}") from None


def _objects(array: NDArray[np.generic]) -> Iterable[object]:
    return array.ravel().tolist() if array.dtype.kind == "O" else ()


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
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise UsageError(f"threads: expected a whole number, 1 or more, got {threads!r}")
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
