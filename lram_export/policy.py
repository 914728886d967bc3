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
from lram_export.spec.tensors import StepSpec, TensorSpec
from lram_export.system.machine import suitable_threads

Observation = NDArray[np.generic] | Mapping[str, NDArray[np.generic]]
"""The observation, or all of them by name."""


class Policy:
    """A running policy: keeps return-to-go and the recurrent state, one or more rows (robots) at a time.

    One control loop, one policy: every method but ``close`` raises RuntimeError where the policy is closed, in use by
    another thread, or was loaded before this process forked. Results do not depend on what ran before ``reset``.

    Attributes:
        runtime: the target's runtime, for callers that keep return-to-go themselves.
        task: what the policy was exported for; None for a module of one's own.
        spec: names and shapes of a step.
    """

    def __init__(self, runtime: Runtime, task: TaskSpec | None) -> None:
        self.runtime, self.task = runtime, task
        self._guard = Guard(self)
        self.spec: StepSpec = runtime.spec
        self._conditioning = conditioning(self.spec, task)
        self._observations = observations_of(self.spec)
        self._inputs = tuple(tensor.name for tensor in self.spec.inputs)
        self._is_first = np.ones(self.spec.batch_size, np.float32)
        self._outputs = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in self.spec.outputs}
        aims = task is not None and self.spec.input("return_to_go") is not None
        self.reset(target_return=task.target_return if task is not None and aims else None)

    @property
    def return_to_go(self) -> NDArray[np.float32]:
        """(B,) scaled return-to-go that the last :meth:`act` used (after a reset: that the next will use); zeros for a
        policy that aims at no return."""
        return self._conditioning.return_to_go

    @property
    def action_logits(self) -> NDArray[np.float32]:
        """(B, action_dim, 274), or (B, 18) for discrete actions: what the last step chose from; a copy.

        Raises:
            AttributeError: the policy has no such output.
        """
        if "action_logits" not in self._outputs:
            raise AttributeError(f"this policy has no output 'action_logits'; it has: {', '.join(self._outputs)}")
        return self._outputs["action_logits"].copy()

    @property
    def outputs(self) -> dict[str, NDArray[np.generic]]:
        """Every output of the last step by name, with rows, as the step gives it; copies."""
        return {name: values.copy() for name, values in self._outputs.items()}

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

    def act(self, observation: Observation, reward: ArrayLike | None = None) -> NDArray[np.generic] | np.int64:
        """One environment step: the action for an observation.

        Args:
            observation: (observation_dim,) or, for batch B, (B, observation_dim), any float type; images
                (3, 64, 64) or (B, 3, 64, 64) uint8. Of a policy with several inputs, or by name: a mapping from each
                input's name to such an array.
            reward: reward of the previous step in the environment's units, a number or (B,). It lowers the
                return-to-go; with reward feedback `observed` it also is the reward token, and is then
                required after an episode's first step. Rows at the first step of an episode ignore it.

        Returns:
            (action_dim,) or (B, action_dim) float32, a new array. Discrete actions as Gymnasium takes them: an int64,
            or (B,) of them. Of a policy with several outputs the first; see :meth:`step`.

        Raises:
            ValueError: naming the field, what was expected and what came; nothing has changed then.
            StepError: the results are not finite. Nothing has changed, or the recurrent state is lost: then every
                step raises this until all rows are reset or a state is loaded.
            BundleError: the target's runtime failed.
        """
        with self._guard:
            single = self._step(observation, reward)
            chosen = self._outputs[self.spec.outputs[0].name]
            if chosen.dtype == np.int64 and chosen.ndim == 2 and chosen.shape[1] == 1:
                chosen = chosen[:, 0]
            return chosen[0].copy() if single else chosen.copy()

    def step(self, observation: Observation, reward: ArrayLike | None = None) -> dict[str, NDArray[np.generic]]:
        """One environment step: every output by name, as the step gives it, see :meth:`act`.

        Returns:
            New arrays of the shapes of ``spec.outputs``, without rows where the observation had none.
        """
        with self._guard:
            single = self._step(observation, reward)
            return {name: (values[0] if single else values).copy() for name, values in self._outputs.items()}

    def _step(self, observation: Observation, reward: ArrayLike | None) -> bool:
        """Take a step and keep its outputs; whether the observation came without rows."""
        observed, single = self._observed(observation)
        told = self._conditioning.inputs(reward, self._is_first)
        given = {**observed, **told, "is_first": self._is_first}
        try:
            output = self.runtime.step(*[given[name] for name in self._inputs])
        except ValueError:
            self._check_as_given(observation)
            raise
        self._conditioning.commit(told)
        self._is_first.fill(0.0)
        for kept, values in zip(self._outputs.values(), output, strict=True):
            kept[...] = values
        return single

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

    def _observed(self, observation: Observation) -> tuple[dict[str, NDArray[np.generic]], bool]:
        """The observations by name with rows, and whether they came without."""
        if isinstance(observation, np.ndarray) and len(self._observations) == 1:
            batched, single = self._batched(self._observations[0], observation)
            return {self._observations[0].name: batched}, single
        names = [tensor.name for tensor in self._observations]
        if not isinstance(observation, Mapping):
            one = self._observations[0]
            if len(names) == 1:
                raise ValueError(f"{self._expected(one)}, got {type(observation).__name__}")
            raise ValueError(
                f"observation: expected a mapping with {', '.join(names)}, got {type(observation).__name__}"
            )
        odd = [name for name in (*names, *observation) if (name in names) != (name in observation)]
        if odd:
            what = "missing" if odd[0] in names else f"unknown; this policy takes {', '.join(names)}"
            raise ValueError(f"{odd[0]}: {what}")
        found = {tensor.name: self._batched(tensor, observation[tensor.name]) for tensor in self._observations}
        without = [single for _, single in found.values()]
        if len(set(without)) > 1:
            raise ValueError(f"observation: expected rows in all of {', '.join(names)}, or in none of them")
        return {name: values for name, (values, _) in found.items()}, without[0]

    def _check_as_given(self, observation: Observation) -> None:
        """Name the value that the runtime refuses by its place in the caller's array, which may have no rows."""
        for tensor in self._observations:
            values = observation[tensor.name] if isinstance(observation, Mapping) else observation
            if tensor.dtype == "float32":
                check_magnitude(tensor.name, np.asarray(values), tensor.limit)

    def _expected(self, spec: TensorSpec) -> str:
        return f"{spec.name}: expected {spec.dtype} of shape {' or '.join(str(s) for s in self._shapes(spec))}"

    def _shapes(self, spec: TensorSpec) -> list[tuple[int, ...]]:
        return [spec.shape[1:], spec.shape] if self.spec.batch_size == 1 else [spec.shape]

    def _batched(self, spec: TensorSpec, observation: object) -> tuple[NDArray[np.generic], bool]:
        """An observation with rows, and whether it came without."""
        if not isinstance(observation, np.ndarray):
            raise ValueError(f"{self._expected(spec)}, got {type(observation).__name__}")
        shape, dtype = observation.shape, observation.dtype
        right_type = dtype == spec.dtype or (spec.dtype == "float32" and dtype.kind == "f")
        single = shape == spec.shape[1:] and self.spec.batch_size == 1
        if not (single or shape == spec.shape) or not right_type:
            raise ValueError(f"{self._expected(spec)}, got {dtype} of shape {shape}")
        values = np.asarray(observation)  # numpy.ma hides what is under a mask
        if dtype != spec.dtype:  # what float64 holds, float32 may not; all others are checked by the runtime
            check_magnitude(spec.name, values, spec.limit)
            values = values.astype(spec.dtype)
        return values.reshape(spec.shape), single


def observations_of(spec: StepSpec) -> tuple[TensorSpec, ...]:
    """The inputs of a step that are observations: all that the step API does not fill itself."""
    return tuple(tensor for tensor in spec.inputs if tensor.name not in ("return_to_go", "reward", "is_first"))


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
