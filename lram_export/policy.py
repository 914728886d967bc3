"""The step API: what a control loop uses, the same for every target. numpy in, numpy out; no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lram_export.bundle.bundle import Bundle
from lram_export.bundle.fetching import local
from lram_export.conditioning import Floats, Mask, check_first, check_saved, conditioning
from lram_export.envelope import Envelope
from lram_export.errors import LramError, StepError, UsageError
from lram_export.model.config import read_model
from lram_export.observations import Arrays, Observation, Observations, observations_of
from lram_export.origin import SIGNATURE, Origin, check_signature
from lram_export.priming import told_over
from lram_export.rates import may_spin
from lram_export.runtimes import OPEN_UNCHECKED, Runtime, load_runtime, unavailable
from lram_export.runtimes.guard import Guard
from lram_export.runtimes.protocol import StepOutput, check_magnitude, check_rows
from lram_export.spec.bounds import MOST_BATCH
from lram_export.spec.counts import Counts
from lram_export.spec.interface import Interface
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import StepSpec
from lram_export.swapping import check_same_interface, check_same_robot, load_settled
from lram_export.system.machine import suitable_threads, usable_cores

__all__ = ["Observation", "Policy", "default_target", "load_policy", "observations_of"]


class Begun(NamedTuple):
    """A step between :meth:`Policy.begin` and :meth:`Policy.finish`.

    Attributes:
        inputs: in the order of ``spec.inputs``, checked; they may be the caller's own arrays.
        given: the same by name.
        told: those of them that are no observation.
        starting: rows that start an episode with this step; None: no row does.
        single: whether the observation came without rows.
    """

    inputs: tuple[NDArray[Any], ...]
    given: Arrays
    told: dict[str, Floats]
    starting: Mask | None
    single: bool


class Policy:
    """A running policy: keeps return-to-go and the recurrent state, one or more rows (robots) at a time.

    One control loop, one policy: every method but ``close`` raises RuntimeError where the policy is closed, in use by
    another thread, or was loaded before this process forked. Results do not depend on what ran before ``reset``.

    Attributes:
        runtime: the target's runtime, for callers that keep return-to-go themselves.
        task: what the policy was exported for; None for a module of one's own.
        spec: names and shapes of a step.
        origin: the bundle it was loaded from; None for one around a runtime of the caller's.
        interface: what the bundle says of its robot: names, units, limits, rate.
    """

    def __init__(
        self,
        runtime: Runtime,
        task: TaskSpec | None,
        origin: Origin | None = None,
        interface: Interface | None = None,
        values: Floats | None = None,
    ) -> None:
        """Act with a runtime.

        Args:
            runtime: of any target; to let others use it meanwhile is a mistake.
            task: what it was exported for.
            origin: where :func:`load_policy` found it.
            interface: what is said there of the robot; default: nothing, and so no limit is counted or heeded.
            values: what an action that is chosen from scores can be before an interface scales and clamps it, (n,);
                needed where one does.
        """
        self.runtime, self.task, self.origin = runtime, task, origin
        self.interface = Interface() if interface is None else interface
        self._guard = Guard(self)
        self.spec: StepSpec = runtime.spec
        self._conditioning = conditioning(self.spec, task)
        self._envelope = Envelope(self.spec, self.interface, values)
        self._observations = Observations(self.spec)
        self._inputs = tuple(tensor.name for tensor in self.spec.inputs)
        self._first_output = self.spec.outputs[0].name
        self._is_first = np.ones(self.spec.batch_size, np.float32)
        self._outputs = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in self.spec.outputs}
        self._given: Arrays = {}
        self._chosen: Arrays = {}
        self._stumbled = False
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

    @property
    def inputs(self) -> dict[str, NDArray[np.generic]]:
        """Every input of the last step by name, with rows, scaled as the step took it; copies. Before the first: none.

        Of an observation that was not converted it is the caller's own array: ask before it is filled anew.
        """
        return {name: values.copy() for name, values in self._given.items()}

    @property
    def chosen(self) -> dict[str, NDArray[np.generic]]:
        """The actions of the last step that have limits or a safety, as the step gave them, before safety; copies."""
        return {name: values.copy() for name, values in self._chosen.items()}

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
            self._envelope.start(chosen)
            self._is_first[chosen] = 1.0

    def act(
        self, observation: Observation, reward: ArrayLike | None = None, *, first: ArrayLike | None = None
    ) -> NDArray[np.generic] | np.int64:
        """One environment step: the action for an observation.

        Args:
            observation: (observation_dim,) or, for batch B, (B, observation_dim), of any type of number; images
                (3, 64, 64) or (B, 3, 64, 64), whole numbers from 0 to 255. An array, nested lists, or whatever offers
                ``__array__``. Of a policy with several inputs, or by name: a mapping from each input's name to such.
            reward: reward of the previous step in the environment's units, a number or (B,). It lowers the
                return-to-go; with reward feedback `observed` it also is the reward token, and is then
                required after an episode's first step. Rows at the first step of an episode ignore it: there it may
                be None or NaN.
            first: whether this observation is the first of a new episode, a boolean for all rows or (B,) of them; as
                :meth:`reset` with that mask just before, but that nothing is reset if anything is refused.

        Returns:
            (action_dim,) or (B, action_dim) float32, a new array. Discrete actions as Gymnasium takes them: an int64,
            or (B,) of them. Of a policy with several outputs the first; see :meth:`step`. Where the interface asks for
            safety, the action is held to it; see :meth:`counts`.

        Raises:
            ValueError: naming the field, what was expected and what came; nothing has changed then.
            StepError: the results are not finite. Nothing has changed, or the recurrent state is lost: then every
                step raises this until all rows are reset or a state is loaded.
            BundleError: the target's runtime failed.
        """
        with self._guard:
            single = self._step(observation, reward, first)
            chosen = self._outputs[self._first_output]
            if chosen.dtype == np.int64 and chosen.ndim == 2 and chosen.shape[1] == 1:
                chosen = chosen[:, 0]
            return chosen[0].copy() if single else chosen.copy()

    def step(
        self, observation: Observation, reward: ArrayLike | None = None, *, first: ArrayLike | None = None
    ) -> dict[str, NDArray[np.generic]]:
        """One environment step: every output by name, as the step gives it, see :meth:`act`.

        Returns:
            New arrays of the shapes of ``spec.outputs``, without rows where the observation had none.
        """
        with self._guard:
            return self._copies(self._step(observation, reward, first))

    def prime(self, observations: Observation, rewards: ArrayLike | None = None) -> None:
        """Run a history through the state: as :meth:`act` with one observation and reward after the other, to the bit.

        Args:
            observations: (N, ...) for one row, (N, B, ...), or a mapping from each input's name to such.
            rewards: (N,) for one row or (N, B): what :meth:`act` would be given with each, that of the step before.

        Raises:
            ValueError: naming the field, what was expected and what came; nothing has changed then.
            StepError: the results of a step are not finite, naming it; those before it were taken.
            BundleError: the target's runtime failed, likewise.
        """
        with self._guard:
            observed, steps = self._observations.history(observations)
            told = told_over(self._conditioning, self.spec, rewards, steps, self._is_first)
            for step in range(steps):
                of_step = {name: values[step] for name, values in observed.items()}
                begun = self._assembled(of_step, told[step], self._is_first, None, False)
                try:
                    self._commit(begun, self._made(begun))
                except LramError as error:
                    raise type(error)(f"step {step}: {error}") from None

    def settle(self) -> None:
        """Do what the last step left for the time after its action, and return when it is done.

        The target `native` with a lazy state gives an action before it rewrites a part of its memory; its other threads
        begin with that at once, and the next step does what is left. With one thread a control loop calls this when
        the action is on its way. No result depends on it, and on other targets it does nothing.
        """
        with self._guard:
            self.runtime.settle()

    def hold(self, action: ArrayLike | Mapping[str, ArrayLike], rows: Iterable[int] | None = None) -> None:
        """Say what the robot holds at the start of an episode, for an interface that bounds how much an action changes.

        Without it the first action after :meth:`reset` or :meth:`load_state` may be any: nobody knows where the robot
        was put.

        Args:
            action: (action_dim,) or one for each of the rows; of a policy with several actions a mapping by name.
            rows: numbers of batch rows, or a mask; default all.

        Raises:
            ValueError: naming the field, what was expected and what came; nothing has changed then.
        """
        with self._guard:
            self._envelope.hold(action, check_rows(rows, self.spec.batch_size))

    def counts(self) -> dict[str, Counts]:
        """How often each action was clamped to its limits, or held back by its safety, since the policy was loaded.

        Of the actions that the interface says limits or a safety of; copies.
        """
        return self._envelope.counts()

    def begin(
        self, observation: Observation, reward: ArrayLike | None = None, *, first: ArrayLike | None = None
    ) -> Begun:
        """The first half of a step, for who makes those of several policies together: checks what :meth:`step` is
        given. Until :meth:`finish` nothing has changed, but that a lost state is reset where an episode starts.

        Raises:
            ValueError: as :meth:`act`.
        """
        with self._guard:
            begun = self._begun(observation, reward, first)
            try:
                self._check_magnitudes(begun)
                self._revive(begun)
            except ValueError:
                self._observations.check_as_given(observation)
                raise
            return begun

    def finish(self, begun: Begun, output: Iterable[NDArray[Any]] | Exception) -> dict[str, NDArray[np.generic]]:
        """The second half: every output by name, of what the policy's runtime would have made of the inputs.

        Args:
            begun: what :meth:`begin` returned last.
            output: the arrays of ``spec.outputs``, in that order; or why there are none, which is raised.
        """
        with self._guard:
            if isinstance(output, Exception):
                self._stumbled = self._stumbled or isinstance(output, LramError)
                raise output
            self._keep(begun, output)
            return self._copies(begun.single)

    def _copies(self, single: bool) -> dict[str, NDArray[np.generic]]:
        return {name: (values[0] if single else values).copy() for name, values in self._outputs.items()}

    def _step(self, observation: Observation, reward: ArrayLike | None, first: ArrayLike | None) -> bool:
        """Take a step and keep its outputs; whether the observation came without rows."""
        begun = self._begun(observation, reward, first)
        try:
            self._revive(begun)
            self._keep(begun, self._made(begun))
        except ValueError:
            self._observations.check_as_given(observation)
            raise
        return begun.single

    def _begun(self, observation: Observation, reward: ArrayLike | None, first: ArrayLike | None) -> Begun:
        """A step whose inputs are checked but for their magnitude."""
        observed, single = self._observations.read(observation)
        is_first, starting = self._is_first, check_first(first, self.spec.batch_size)
        if starting is not None:
            is_first = np.where(starting, np.float32(1.0), is_first)
        told = self._conditioning.inputs(reward, is_first, starting)
        return self._assembled(observed, told, is_first, starting, single)

    def _assembled(
        self, observed: Arrays, told: dict[str, Floats], is_first: Floats, starting: Mask | None, single: bool
    ) -> Begun:
        given = {**observed, **told, "is_first": is_first}
        return Begun(tuple([given[name] for name in self._inputs]), given, told, starting, single)

    def _made(self, begun: Begun) -> StepOutput:
        """What the runtime makes of a step."""
        try:
            return self.runtime.step(*begun.inputs)
        except LramError:
            self._stumbled = True
            raise

    def _keep(self, begun: Begun, output: Iterable[NDArray[Any]]) -> None:
        """Keep what came of a step, its actions held to what the robot may do."""
        self._commit(begun, output)
        if self._envelope:
            if begun.starting is not None:
                self._envelope.start(begun.starting, with_this_step=True)
            self._chosen = {name: self._outputs[name].copy() for name in self._envelope.names}
            self._envelope.apply(self._outputs)
        else:
            self._chosen = {}

    def _commit(self, begun: Begun, output: Iterable[NDArray[Any]]) -> None:
        """The same of actions that no robot makes."""
        self._conditioning.commit(begun.told)
        self._given = begun.given
        self._given["is_first"] = self._given["is_first"].copy()
        self._is_first.fill(0.0)
        for kept, values in zip(self._outputs.values(), output, strict=True):
            kept[...] = values

    def _check_magnitudes(self, begun: Begun) -> None:
        for tensor, values in zip(self.spec.inputs, begun.inputs, strict=True):
            if tensor.dtype == "float32":
                check_magnitude(tensor.name, values, tensor.limit)

    def _revive(self, begun: Begun) -> None:
        """Reset rows below, where ``is_first`` alone does not help: a state that was lost takes no step at all."""
        if self._stumbled and begun.starting is not None:
            self._check_magnitudes(begun)
            self.runtime.reset(begun.starting)

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything a run needs to go on elsewhere, as named arrays with the same names on every target.

        The recurrent state, ``return_to_go`` and ``target_return`` where the policy aims at a return, and
        ``is_first``, all float32. Of a policy that was loaded from a bundle also whose state it is: ``weights``, the
        SHA-256 of the checkpoint's, uint8 (32,), and ``precision``, the letters of a text, uint8.
        """
        with self._guard:
            return self._saved()

    def _saved(self) -> dict[str, NDArray[Any]]:
        whose = {} if self.origin is None else self.origin.signature()
        own = {**self._conditioning.state(), "is_first": self._is_first.copy()}
        return {**self.runtime.state(), **own, **whose}

    def load_state(self, state: Mapping[str, NDArray[Any]], force: bool = False) -> None:
        """Continue from a :meth:`state` of any target and precision.

        Args:
            state: one that says nothing of its weights is taken, too.
            force: take it, though it is of other weights.

        Raises:
            ValueError: it does not fit, or is of other weights; nothing has changed.
        """
        with self._guard:
            if not isinstance(state, Mapping):
                raise ValueError(f"state: expected named arrays, as state() returns them, got {type(state).__name__}")
            check_signature(state, self.origin, force=force)
            self._conditioning.check_state(state)
            check_saved(self.spec.inputs[-1], state)
            if not np.isin(state["is_first"], (0.0, 1.0)).all():
                raise ValueError(f"is_first: expected 0 or 1, got {state['is_first'].tolist()}")
            own = {*self._conditioning.state(), "is_first", *SIGNATURE}
            self.runtime.load_state({k: v for k, v in state.items() if k not in own})
            self._conditioning.load_state(state)
            self._envelope.start(range(self.spec.batch_size))
            self._is_first = np.array(state["is_first"], np.float32)

    def swap(
        self, bundle: str | Path, target: str | None = None, prepare: Callable[[Policy], None] | None = None
    ) -> bool:
        """Go on with another bundle of the same interface, from the next step on.

        Meant for a thread beside the control loop, which goes on while the bundle is loaded and checked, and waits no
        longer than it takes to hand the state over. If anything fails, the policy is as it was.

        Args:
            bundle: its folder, which may be the one that this policy was loaded from, replaced meanwhile; or its
                address, as :func:`load_policy` takes it.
            target: default: the one that runs, if the bundle has it; else as :func:`load_policy` chooses.
            prepare: what is done with the other policy before it takes over, such as
                :func:`lram_export.loop.warmup.warm_up`; what it raises, this raises.

        Returns:
            Whether the state was kept: if the weights are the same, whatever the precision. Else every row starts an
            episode and aims at what it aimed at.

        Raises:
            UsageError: another interface, or as :func:`load_policy`.
            LramError: as :func:`load_policy`; or the folder was replaced again and again while it was loaded.
            ValueError: a row aims at more than the weights of the other policy allow.
            RuntimeError: as every method; or a step took more than a minute.
        """
        self._guard.check()
        path, now = local(bundle), self.origin
        other = load_settled(path, lambda: _loaded_like(now, path, target, self.spec.batch_size))
        try:
            check_same_interface(path, self.spec, self.task, other.spec, other.task)
            check_same_robot(path, self.interface, other.interface)
            if prepare is not None:
                prepare(other)
            with self._guard.exchange():
                kept = self._hand_over(other)
                old = self._become(other)
        except BaseException:
            other.close()
            raise
        with suppress(RuntimeError):  # someone steps on it by itself; it goes when they let it go
            old.close()
        return kept

    def _hand_over(self, other: Policy) -> bool:
        """Let another policy go on where this one is; whether it could keep the state."""
        if self.origin is not None and other.origin is not None and self.origin.weights == other.origin.weights != "":
            with suppress(ValueError, StepError):  # it was lost, or does not fit
                other.load_state(self._saved())
                return True
        aims = self._conditioning.restarted()
        other._conditioning.check_state(aims)
        other.reset()
        other._conditioning.load_state(aims)
        return False

    def _become(self, other: Policy) -> Runtime:
        """Take over what another policy is, but for the outputs of the last step; the runtime that is left over."""
        old = self.runtime
        self.runtime, self.task, self.spec, self.origin = other.runtime, other.task, other.spec, other.origin
        self.interface = other.interface
        other._envelope.take_over(self._envelope)
        self._envelope = other._envelope
        self._conditioning, self._observations, self._inputs = other._conditioning, other._observations, other._inputs
        self._is_first, self._stumbled = other._is_first, False
        return old

    def __reduce__(self) -> tuple[Callable[..., Policy], tuple[object, ...]]:
        """Where a policy comes from goes to another process, which loads it again, at the start of an episode.

        Raises:
            TypeError: it was not loaded by :func:`load_policy`.
        """
        if self.origin is None:
            raise TypeError("this policy cannot be sent to another process: it was not loaded by load_policy")
        return _loaded_again, (str(self.origin.path), self.origin.target, dict(self.origin.options))

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


def load_policy(
    path: str | Path,
    target: str | None = None,
    *,
    threads: int | None = None,
    batch: int | None = None,
    spin: bool | None = None,
) -> Policy:
    """Open a bundle, check its files against their hashes, and load one target.

    Args:
        path: the bundle's folder; or its address on the Hugging Face Hub, ``hf://OWNER/NAME[@REVISION]``, which is
            fetched: ``policy.origin.path`` then is the folder of its commit in the cache.
        target: which artifact to run; default: the bundle's first whose runtime is installed.
        threads: threads of the runtime; default: 1 for small models, up to all usable cores for large ones. A control
            loop that shares the machine with other loops may want 1: it gives up some speed for latency that does
            not depend on who else needs a core.
        batch: rows (robots, environments) to act for; default: as many as the bundle was exported for.
        spin: whether threads may keep looking for work after a step, which saves waking them for the next, or shall
            sleep, which leaves the cores to others; default: by the rate that the bundle says, see
            :func:`lram_export.rates.may_spin`. Results are the same.

    Raises:
        UsageError: no such bundle or target; TargetNotInstalledError with the pip command.
        HubError: the Hub was not reached, and its cache has none of the bundle or not all.
        BundleError: the bundle is damaged, written by a newer version, or replaced again and again while it is loaded.
    """
    _check_count("threads", threads)
    _check_count("batch", batch, MOST_BATCH)
    if spin not in (None, True, False):
        raise UsageError(f"spin: expected True, False or None, got {spin!r}")
    path = local(path)
    return load_settled(path, lambda: _loaded(path, target, threads, batch, spin))


def _loaded(path: str | Path, target: str | None, threads: int | None, batch: int | None, spin: bool | None) -> Policy:
    """A policy from a folder that stays as it is meanwhile."""
    bundle = Bundle.open(path)
    chosen = target or default_target(bundle)
    artifact, manifest = bundle.artifact(chosen), bundle.manifest
    origin = Origin(
        path=Path(os.path.abspath(path)),  # noqa: PTH100 - resolve() would follow links, which may lead elsewhere later
        target=chosen,
        options={"threads": threads, "batch": batch, "spin": spin},
        weights=manifest.source["sha256"],
        precision=artifact.precision,
        digest=bundle.artifact_digest(chosen),
    )
    if threads is None:
        threads = suitable_threads(manifest.parameters, manifest.batch_size if batch is None else batch)
    if spin is None:
        spin = may_spin(manifest.interface.rate)
    runtime = open_runtime(bundle, chosen, threads, batch, spin)
    return Policy(runtime, manifest.task, origin, manifest.interface, choices(bundle))


def open_runtime(bundle: Bundle, target: str, threads: int, batch: int | None = None, spin: bool = True) -> Runtime:
    """The runtime of a target, whose files are the manifest's; see :func:`load_policy`."""
    hashing = min(threads, usable_cores())
    if target not in OPEN_UNCHECKED:
        return load_runtime(target, bundle.load_artifact(target, batch, hashing), threads, spin)
    runtime: Runtime | None = None
    try:
        with bundle.loading(target, batch, hashing) as artifact:
            runtime = load_runtime(target, artifact, threads, spin)
    except BaseException:
        if runtime is not None:
            runtime.close()
        raise
    return runtime


def choices(bundle: Bundle) -> Floats | None:
    """What an action that is chosen from scores can be before an interface scales and clamps it: (n,); None for a
    module of one's own, whose step computes its actions."""
    manifest = bundle.manifest
    if manifest.task is None or not manifest.interface.scalings:
        return None
    return read_model(manifest.model, bundle.path).head.values()


def _check_count(name: str, value: int | None, most: int | None = None) -> None:
    """Raise UsageError unless it is a whole number from 1 on."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= (most or value)):
        return
    raise UsageError(f"{name}: expected a whole number, {f'1 to {most}' if most else '1 or more'}, got {value!r}")


def default_target(bundle: Bundle) -> str:
    """The bundle's first target that runs here; its first, if none does."""
    for target in bundle.targets:
        if unavailable(target) is None:
            return target
    return bundle.targets[0]


def _loaded_like(origin: Origin | None, path: Path, target: str | None, batch: int) -> Policy:
    """Load a bundle as another was loaded, unless told otherwise."""
    if origin is None:
        return _loaded(path, target, None, batch, None)
    alike = origin.target if origin.target in Bundle.open(path).targets else None
    return _loaded(path, target or alike, origin.options["threads"], batch, origin.options["spin"])


def _loaded_again(path: str, target: str, options: dict[str, Any]) -> Policy:
    """What a pickled policy is made of."""
    return load_policy(path, target, **options)
