"""A policy on another machine, as a robot calls it: the calls, results and errors of
:class:`lram_export.policy.Policy`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lram_export.arrays import numbers
from lram_export.conditioning import check_first, conditioning
from lram_export.errors import LramError, RemoteError, UsageError
from lram_export.observations import Arrays, Observation, Observations
from lram_export.runtimes.guard import Guard
from lram_export.runtimes.protocol import check_magnitude, check_rows
from lram_export.serving.connection import Connection, NotReachedError, SessionLostError
from lram_export.serving.deadlines import Deadline
from lram_export.serving.description import Description, read_description
from lram_export.serving.limits import KINDS, NONCE_BYTES
from lram_export.serving.messages import PROTOCOL, message, put, taken, taken_one
from lram_export.serving.tokens import read_tokens
from lram_export.spec.counts import Counts
from lram_export.spec.interface import Interface
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import StepSpec

Then = Callable[[Any], None]
"""What to note of an answer without a refusal."""


class RemotePolicy:
    """A seat at a server's policy: acts for one robot, as a policy of one row that :func:`load_policy` opened.

    What the connection does is no part of the results: a call that may have been lost is sent again, under its number,
    and the server makes each step once. A call that raises RemoteError in spite of that is finished before the next, so
    that every call of :meth:`act` is one step, whether its answer came or not.

    One control loop, one policy: every method but ``close`` raises RuntimeError where the policy is closed, in use by
    another thread, or was opened before this process forked.

    Attributes:
        url: of the server.
        description: what the server says of the policy: bundle, target, precision.
        spec: names and shapes of a step, of one row.
        task: what the policy was exported for; None for a module of one's own.
        interface: what the bundle says of its robot.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        token_file: str | Path | None = None,
        ca: str | Path | None = None,
        timeout: float = 5.0,
        retries: int = 20,
        bundle: str = "",
        robot: str = "",
        outputs: Sequence[str] = (),
        insecure: bool = False,
    ) -> None:
        """Take a seat.

        Args:
            url: ``grpcs://HOST:PORT``; ``grpc://HOST:PORT`` of a server without TLS.
            token: what lets this robot in, where the server asks for it.
            token_file: a file with the token, which nobody else can read, in place of it.
            ca: PEM file of the authority that signed the server's certificate; default: those that gRPC knows.
            timeout: seconds in which a call has to be answered, sending it again included.
            retries: how often a call is sent again, within its time, where the connection fails.
            bundle: digest of what the server must run (``description.bundle``); default: any.
            robot: a name for the server's log.
            outputs: those that are wanted of each step, the first among them; default: all. Logits are large.
            insecure: send the token though the connection is not encrypted.

        Raises:
            UsageError: an argument that makes no sense.
            RemoteError: the server was not reached, did not let this robot in, or has no seat free.
        """
        if token is not None and token_file is not None:
            raise UsageError("token, token_file: give one of them")
        if token_file is not None:
            token = read_tokens(Path(token_file))[0]
        _check_seconds(timeout)
        if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= 1000:
            raise UsageError(f"retries: expected 0 to 1000, got {retries!r}")
        self.url = url
        self._timeout = timeout
        self._guard = Guard(self)
        self._opening = {"bundle": bundle, "robot": robot, "outputs": list(outputs)}
        self._session, self._number = b"", 0
        self._pending: tuple[str, bytes, Then] | None = None
        self._aim: float | None = None
        self._connection = Connection(url, token, ca, retries, insecure)
        try:
            self.description = self._open(Deadline(timeout))
            self._learn(outputs)
        except BaseException:
            self._connection.close()
            raise

    def _learn(self, outputs: Sequence[str]) -> None:
        said = self.description
        self.spec: StepSpec = said.spec
        self.task: TaskSpec | None = said.task
        self.interface: Interface = said.interface
        if self.spec.batch_size != 1:
            raise RemoteError(f"{self.url}: expected a policy of one row, got one of {self.spec.batch_size}")
        first = self.spec.outputs[0].name
        if outputs and first not in outputs:
            raise UsageError(f"outputs: expected {first} among them, which act() returns")
        self._observations = Observations(self.spec)
        self._conditioning = conditioning(self.spec, self.task)
        wanted = [tensor for tensor in self.spec.outputs if not outputs or tensor.name in outputs]
        self._outputs: Arrays = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in wanted}
        self._is_first = np.ones(1, np.float32)
        self._return_to_go = np.zeros(1, np.float32)
        if self.task is not None and self.spec.input("return_to_go") is not None:
            scale = np.float32(self.task.reward_scale)
            self._return_to_go[:] = np.float32(self.task.target_return) / scale

    @property
    def return_to_go(self) -> NDArray[np.float32]:
        """See :attr:`lram_export.policy.Policy.return_to_go`: (1,)."""
        return self._return_to_go.copy()

    @property
    def action_logits(self) -> NDArray[np.float32]:
        """See :attr:`lram_export.policy.Policy.action_logits`."""
        if "action_logits" not in self._outputs:
            raise AttributeError(f"this policy has no output 'action_logits'; it has: {', '.join(self._outputs)}")
        return self._outputs["action_logits"].copy()

    @property
    def outputs(self) -> dict[str, NDArray[np.generic]]:
        """Every output of the last step that is wanted, by name, with rows, as the step gives it; copies."""
        return {name: values.copy() for name, values in self._outputs.items()}

    def act(
        self,
        observation: Observation,
        reward: ArrayLike | None = None,
        *,
        first: ArrayLike | None = None,
        timeout: float | None = None,
    ) -> NDArray[np.generic] | np.int64:
        """One environment step: the action for an observation, see :meth:`lram_export.policy.Policy.act`.

        Args:
            observation: as there; checked here, before it is sent.
            reward: as there.
            first: as there. Where the server has lost the session, another one is opened.
            timeout: seconds for this call; default: that of the constructor.

        Raises:
            ValueError, StepError, BundleError: as there.
            RemoteError: no answer; the step is finished before the next call. Or the session is gone, which was not
                used for too long, or whose server was started anew: :meth:`reset` opens another one.
        """
        with self._guard:
            single = self._step(observation, reward, first, self._deadline(timeout))
            chosen = self._outputs[self.spec.outputs[0].name]
            if chosen.dtype == np.int64 and chosen.ndim == 2 and chosen.shape[1] == 1:
                chosen = chosen[:, 0]
            return chosen[0].copy() if single else chosen.copy()

    def step(
        self,
        observation: Observation,
        reward: ArrayLike | None = None,
        *,
        first: ArrayLike | None = None,
        timeout: float | None = None,
    ) -> dict[str, NDArray[np.generic]]:
        """One environment step: every output that is wanted by name, see :meth:`act`."""
        with self._guard:
            single = self._step(observation, reward, first, self._deadline(timeout))
            return {name: (values[0] if single else values).copy() for name, values in self._outputs.items()}

    def reset(
        self, rows: Iterable[int] | None = None, target_return: ArrayLike | None = None, *, timeout: float | None = None
    ) -> None:
        """Start an episode, see :meth:`lram_export.policy.Policy.reset`; on another seat, if the session is gone.

        Raises:
            ValueError: as there.
            RemoteError: no answer, see :meth:`act`; or no seat is free.
        """
        with self._guard:
            chosen = check_rows(rows, 1)
            self._conditioning.check_target(chosen, target_return)
            if chosen:
                aim = None if target_return is None else float(numbers("target_return", target_return).reshape(-1)[0])
                deadline = self._deadline(timeout)
                self._anew(lambda: self._reset(aim, deadline), deadline)

    def hold(
        self,
        action: ArrayLike | Mapping[str, ArrayLike],
        rows: Iterable[int] | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        """Say what the robot holds at the start of an episode, see :meth:`lram_export.policy.Policy.hold`."""
        with self._guard:
            if check_rows(rows, 1):
                given = action if isinstance(action, Mapping) else {"": action}
                arrays = {name: _held(name or "action", value) for name, value in given.items()}
                self._call("Hold", lambda request: put(request.actions, arrays), _nothing, self._deadline(timeout))

    def counts(self, *, timeout: float | None = None) -> dict[str, Counts]:
        """How often actions were clamped and held back, since the session was opened; see
        :meth:`lram_export.policy.Policy.counts`."""
        with self._guard:
            found: Arrays = {}
            self._call("Count", _nothing, lambda answer: found.update(taken(answer.counts)), self._deadline(timeout))
            actions = dict.fromkeys(name.rpartition(".")[0] for name in found)
            return {
                action: Counts(**{of.name: found[f"{action}.{of.name}"] for of in fields(Counts)}) for action in actions
            }

    def state(self, *, timeout: float | None = None) -> dict[str, NDArray[Any]]:
        """Everything a run needs to go on elsewhere, see :meth:`lram_export.policy.Policy.state`."""
        with self._guard:
            found: dict[str, NDArray[Any]] = {}
            self._call("Save", _nothing, lambda answer: found.update(taken(answer.state)), self._deadline(timeout))
            return found

    def load_state(
        self, state: Mapping[str, NDArray[Any]], force: bool = False, *, timeout: float | None = None
    ) -> None:
        """Continue from a state of any policy, see :meth:`lram_export.policy.Policy.load_state`; on another seat, if
        the session is gone."""
        with self._guard:
            if not isinstance(state, Mapping):
                raise ValueError(f"state: expected named arrays, as state() returns them, got {type(state).__name__}")
            arrays = {name: _stored(name, value) for name, value in state.items()}

            def fill(request: Any) -> None:
                put(request.state, arrays)
                request.force = force

            def then(answer: Any) -> None:
                self._is_first[:] = arrays["is_first"]
                self._note_return(answer)

            deadline = self._deadline(timeout)
            self._anew(lambda: self._call("Load", fill, then, deadline), deadline)

    def settle(self) -> None:
        """Nothing: the server does it. See :meth:`lram_export.policy.Policy.settle`."""

    def close(self) -> None:
        """Leave the seat; safe to call twice, but nothing else works afterwards.

        Raises:
            RuntimeError: another thread is using the policy.
        """
        if self._guard.close():
            with suppress(RemoteError):  # the seat is free when the session's time is over
                self._connection.call("Close", _bytes("Close", self._session), Deadline(min(self._timeout, 1.0)))
            self._connection.close()

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _step(
        self, observation: Observation, reward: ArrayLike | None, first: ArrayLike | None, deadline: Deadline
    ) -> bool:
        """Check, as the policy there does, in its order; take a step and keep its outputs. Whether it came without
        rows."""
        observed, single = self._observations.read(observation)
        is_first, starting = self._is_first, check_first(first, 1)
        if starting is not None:
            is_first = np.ones(1, np.float32)
        self._conditioning.inputs(reward, is_first, starting)
        try:
            for tensor in self.spec.inputs:
                if tensor.name in observed and tensor.dtype == "float32":
                    check_magnitude(tensor.name, observed[tensor.name], tensor.limit)
        except ValueError:
            self._observations.check_as_given(observation)
            raise

        def fill(request: Any) -> None:
            put(request.observations, observed)
            if reward is not None:
                request.reward = float(numbers("reward", reward, missing=True).reshape(-1)[0])
            if starting is not None:
                request.first = True

        if starting is None:
            self._call("Step", fill, self._stepped, deadline)
        else:
            self._anew(lambda: self._call("Step", fill, self._stepped, deadline), deadline)
        return single

    def _stepped(self, answer: Any) -> None:
        found = taken(answer.outputs)
        for name, kept in self._outputs.items():
            values = found.get(name)
            if values is None or values.shape != kept.shape or values.dtype != kept.dtype:
                raise ValueError(f"{name}: expected {kept.dtype} of shape {kept.shape}")
        self._outputs = {name: found[name] for name in self._outputs}
        self._is_first[:] = 0.0
        self._note_return(answer)

    def _reset(self, aim: float | None, deadline: Deadline) -> None:
        def fill(request: Any) -> None:
            if aim is not None:
                request.target_return = aim

        def then(answer: Any) -> None:
            self._aim = self._aim if aim is None else aim
            self._is_first[:] = 1.0
            self._note_return(answer)

        self._call("Reset", fill, then, deadline)

    def _note_return(self, answer: Any) -> None:
        found = taken_one(answer.return_to_go)
        if found.shape != (1,) or found.dtype != np.float32:
            raise ValueError("return_to_go: expected float32 of shape (1,)")
        self._return_to_go = found

    def _deadline(self, timeout: float | None) -> Deadline:
        """Of a call: the constructor's, unless it has its own; raises UsageError."""
        if timeout is not None:
            _check_seconds(timeout)
        return Deadline(self._timeout if timeout is None else timeout)

    def _anew(self, begin: Callable[[], None], deadline: Deadline) -> None:
        """Something that needs nothing of what was before: on another seat, if this one is gone."""
        try:
            begin()
        except SessionLostError:
            self._open(deadline)
            if self._aim is not None:
                self._reset(self._aim, deadline)
            begin()

    def _open(self, deadline: Deadline) -> Description:
        """Take a seat, the first or another one."""
        request = message("OpenRequest")(protocol=PROTOCOL, nonce=os.urandom(NONCE_BYTES), **self._opening)
        answer = self._connection.call("Open", request.SerializeToString(), deadline)
        try:
            description = read_description(answer.description)
        except ValueError as error:
            raise RemoteError(f"{self.url}: {error}; is it another server?") from None
        self._session, self._number, self._pending = bytes(answer.session), 0, None
        self._opening["bundle"] = description.bundle
        return description

    def _call(self, method: str, fill: Callable[[Any], None], then: Then, deadline: Deadline) -> None:
        """Finish the call before, if nobody knows whether it arrived; then make this one."""
        if self._pending is not None:
            self._send(deadline)
        request = message(f"{method}Request")(session=self._session, number=self._number + 1)
        fill(request)
        self._pending = method, request.SerializeToString(), then
        refusal = self._send(deadline)
        if refusal.kind:
            raise KINDS.get(refusal.kind, LramError)(refusal.text)

    def _send(self, deadline: Deadline) -> Any:
        """Send what is pending, until it is answered or refused: the policy's refusal, if there is any."""
        assert self._pending is not None
        method, data, then = self._pending
        try:
            answer = self._connection.call(method, data, deadline)
        except NotReachedError:
            raise
        except RemoteError:
            self._pending = None
            raise
        self._pending = None
        self._number += 1
        if not answer.HasField("refusal"):
            try:
                then(answer)
            except ValueError as error:
                raise RemoteError(f"{self.url}: {error}; is it another server?") from None
        return answer.refusal


def _nothing(_: Any) -> None:
    """Nothing to fill in, and nothing to note."""


def _bytes(method: str, session: bytes) -> bytes:
    return bytes(message(f"{method}Request")(session=session).SerializeToString())


def _held(name: str, value: ArrayLike) -> NDArray[Any]:
    """What a robot holds; its shape is the policy's matter."""
    return numbers(name, value)


def _stored(name: object, value: object) -> NDArray[Any]:
    """An entry of a state; its shape is the policy's matter."""
    if not isinstance(name, str) or not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected an array of numbers, as state() gives it, got {type(value).__name__}")
    return value


def _check_seconds(timeout: object) -> None:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= 3600:  # NaN is neither
        raise UsageError(f"timeout: expected seconds, more than 0 and at most 3600, got {timeout!r}")
