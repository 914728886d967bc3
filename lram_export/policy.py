"""The step API: what a control loop uses, the same for every target. numpy in, numpy out; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lram_export.bundle.bundle import Bundle
from lram_export.conditioning import check_saved, conditioning
from lram_export.errors import UsageError
from lram_export.runtimes import Runtime, load_runtime, unavailable
from lram_export.runtimes.guard import Guard
from lram_export.runtimes.protocol import State, check_magnitude, check_rows
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import StepSpec
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
        self._conditioning = conditioning(self.spec, task)
        self._discrete = self.spec.outputs[0].dtype == "int64"
        self._is_first = np.ones(self.spec.batch_size, np.float32)
        self._logits = np.zeros(self.spec.outputs[1].shape, np.float32)
        self.reset(target_return=task.target_return if self.spec.input("return_to_go") is not None else None)

    @property
    def return_to_go(self) -> NDArray[np.float32]:
        """(B,) scaled return-to-go that the last :meth:`act` used (after a reset: that the next will use); zeros for a
        policy that aims at no return."""
        return self._conditioning.return_to_go

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
            target = self._conditioning.check_target(chosen, target_return)
            self.runtime.reset(chosen)
            self._conditioning.start(chosen, target)
            self._is_first[chosen] = 1.0

    def act(self, observation: NDArray[np.generic], reward: ArrayLike | None = None) -> NDArray[np.generic] | np.int64:
        """One environment step: the action for an observation.

        Args:
            observation: (observation_dim,) or, for batch B, (B, observation_dim), any float type; images
                (3, 64, 64) or (B, 3, 64, 64) uint8.
            reward: reward of the previous step in the environment's units, a number or (B,). It lowers the
                return-to-go; with reward feedback `observed` it also is the reward token, and is then
                required after an episode's first step. Rows at the first step of an episode ignore it.

        Returns:
            (action_dim,) or (B, action_dim) float32, a new array. Discrete actions as Gymnasium takes them: an int64,
            or (B,) of them.

        Raises:
            ValueError: naming the field, what was expected and what came; nothing has changed then.
            StepError: the results are not finite. Nothing has changed, or the recurrent state is lost: then every
                step raises this until all rows are reset or a state is loaded.
            BundleError: the target's runtime failed.
        """
        with self._guard:
            batched, single = self._batched_observation(observation)
            told = self._conditioning.inputs(reward, self._is_first)
            given = {"observation": batched, **told, "is_first": self._is_first}
            output = self.runtime.step(*(given[tensor.name] for tensor in self.spec.inputs))
            self._conditioning.commit(told)
            self._is_first.fill(0.0)
            np.copyto(self._logits, output.action_logits)
            chosen = output.action[:, 0] if self._discrete else output.action
            return chosen[0].copy() if single else chosen.copy()

    def state(self) -> State:
        """Everything a run needs to go on elsewhere: the recurrent state, ``return_to_go`` and ``target_return`` where
        the policy aims at a return, and ``is_first``, as named float32 arrays with the same names on every target."""
        with self._guard:
            return {**self.runtime.state(), **self._conditioning.state(), "is_first": self._is_first.copy()}

    def load_state(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Continue from a :meth:`state` of any target; raises ValueError and changes nothing if it does not fit."""
        with self._guard:
            if not isinstance(state, Mapping):
                raise ValueError(f"state: expected named arrays, as state() returns them, got {type(state).__name__}")
            self._conditioning.check_state(state)
            check_saved(self.spec.inputs[-1], state)
            if not np.isin(state["is_first"], (0.0, 1.0)).all():
                raise ValueError(f"is_first: expected 0 or 1, got {state['is_first'].tolist()}")
            own = {*self._conditioning.state(), "is_first"}
            self.runtime.load_state({k: v for k, v in state.items() if k not in own})
            self._conditioning.load_state(state)
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
