"""What each call of a robot does with its policy. In a thread of the server's, one call of a session at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from lram_export.errors import LramError, describe
from lram_export.policy import Policy
from lram_export.serving.limits import KINDS
from lram_export.serving.messages import message, put, put_one, taken
from lram_export.serving.rows import Arrays, Outcome
from lram_export.serving.sessions import Session

LOG = logging.getLogger("lram_export.serving")


def answered(method: str, session: Session, request: Any) -> bytes:
    """Carry out a call, any but a step: the bytes of its answer."""
    answer = message(f"{method}Answer")(number=request.number)
    assert session.policy is not None
    try:
        _CALLS[method](session.policy, session, request, answer)
    except Exception as error:
        return _refused(method, session, request, error)
    return bytes(answer.SerializeToString())


class StepCall:
    """A robot's step as a wish of the batcher, whose thread does all of it: threads that wait for one another cost more
    than a small policy's step."""

    def __init__(
        self, row: int, session: Session, policy: Policy, request: Any, done: Callable[[bytes, bool], None]
    ) -> None:
        """``done`` is told the answer, and whether the policy refused."""
        self.row, self.since = row, time.perf_counter()
        self._session, self._policy, self._request, self._done = session, policy, request, done

    def inputs(self) -> Arrays | None:
        """See :class:`lram_export.serving.batching.Wish`."""
        request = self._request
        reward = request.reward if request.HasField("reward") else None
        first = request.first if request.HasField("first") else None
        try:
            self._begun = self._policy.begin(taken(request.observations), reward, first=first)
        except Exception as error:
            self._done(_refused("Step", self._session, request, error), True)
            return None
        return self._begun.inputs

    def finish(self, outcome: Outcome) -> None:
        """See :class:`lram_export.serving.batching.Wish`."""
        answer = message("StepAnswer")(number=self._request.number)
        try:
            outputs = self._policy.finish(self._begun, outcome)
            put(answer.outputs, {name: outputs[name] for name in self._session.outputs})
            put_one(answer.return_to_go, "return_to_go", self._policy.return_to_go)
        except Exception as error:
            self._done(_refused("Step", self._session, self._request, error), True)
            return
        self._done(answer.SerializeToString(), False)


def _refused(method: str, session: Session, request: Any, error: Exception) -> bytes:
    """The answer to a call that the policy refuses."""
    answer = message(f"{method}Answer")(number=request.number)
    answer.refusal.kind, answer.refusal.text = _refusal(method, session, error)
    return bytes(answer.SerializeToString())


def _refusal(method: str, session: Session, error: Exception) -> tuple[str, str]:
    for name, kind in KINDS.items():
        if isinstance(error, kind):
            return name, " ".join(str(error).split())
    LOG.error("%s of robot '%s': %s", method, session.robot, describe(error), exc_info=error)
    return LramError.__name__, f"the server failed: {describe(error)}"


def _reset(policy: Policy, session: Session, request: Any, answer: Any) -> None:
    policy.reset(target_return=request.target_return if request.HasField("target_return") else None)
    put_one(answer.return_to_go, "return_to_go", policy.return_to_go)


def _hold(policy: Policy, session: Session, request: Any, answer: Any) -> None:
    actions = taken(request.actions)
    policy.hold(actions[""] if set(actions) == {""} else actions)


def _save(policy: Policy, session: Session, request: Any, answer: Any) -> None:
    put(answer.state, policy.state())


def _load(policy: Policy, session: Session, request: Any, answer: Any) -> None:
    policy.load_state(taken(request.state), force=request.force)
    put_one(answer.return_to_go, "return_to_go", policy.return_to_go)


def _count(policy: Policy, session: Session, request: Any, answer: Any) -> None:
    for action, counts in policy.counts().items():
        put(answer.counts, {f"{action}.{of.name}": getattr(counts, of.name) for of in fields(counts)})


_CALLS: dict[str, Callable[[Policy, Session, Any, Any], None]] = {
    "Reset": _reset,
    "Hold": _hold,
    "Save": _save,
    "Load": _load,
    "Count": _count,
}
