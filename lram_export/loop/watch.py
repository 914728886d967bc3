"""What a flight recorder is told of a loop. Without a recorder nothing is copied."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.flight.events import SWAPPED
from lram_export.flight.header import FlightHeader
from lram_export.flight.place import here
from lram_export.flight.recorder import Recorder
from lram_export.flight.steps import UNKNOWN, FlightStep
from lram_export.loop.account import Account
from lram_export.loop.readings import Fault, Readings
from lram_export.policy import Policy
from lram_export.spec.counts import Counts
from lram_export.spec.interface import actions_of
from lram_export.spec.tensors import TensorSpec
from lram_export.version import __version__


class Watch:
    """Puts together what becomes of a step, for a recorder; None: nobody is told."""

    def __init__(self, recorder: Recorder | None, rate: float, ticks: int, now: Callable[[], float]) -> None:
        """``now`` is the loop's clock, in seconds."""
        self._recorder, self._rate, self._ticks, self._now = recorder, rate, ticks, now
        self._began, self._number = 0.0, 0
        self._origin: object = None
        self._counts: dict[str, Counts] = {}
        self._actions: Mapping[str, TensorSpec] = {}
        self._rows = 1
        self._step = FlightStep(0, 0.0)
        self._reward: NDArray[np.float64] | None = None
        self._last = 0  # steps there were when something happened

    def begin(self, policy: Policy) -> None:
        """The loop begins."""
        self._began = self._now()
        self._counts = policy.counts()
        if self._recorder is not None:
            self._recorder.begin(self._header(policy))

    def event(self, kind: str, text: str = "") -> None:
        """Something happened."""
        if self._recorder is not None:
            self._recorder.event(kind, text, self._last, self._now() - self._began)

    def start(self, step: int, read_at: float) -> None:
        """A step begins, over what was read at a time."""
        if self._recorder is not None:
            self._last = step
            self._step = FlightStep(step, read_at - self._began, bundle=self._number)

    def acting(self, policy: Policy) -> None:
        """The policy is about to step."""
        if self._recorder is None or policy.origin is self._origin:
            return
        self._number += 1
        self._recorder.begin(self._header(policy))
        self._step.bundle = self._number
        self.event(SWAPPED, "" if policy.origin is None else str(policy.origin.path))

    def acted(self, policy: Policy, reward: Any, seconds: float) -> None:
        """The policy took its step, given a reward."""
        self._step.stepped, self._step.seconds = True, seconds
        self._reward = None if reward is None or self._recorder is None else np.array(reward, np.float64)
        if policy.origin is not self._origin:  # it was swapped just before, or just after
            self._step.bundle = UNKNOWN

    def look(self, policy: Policy) -> None:
        """See what the policy was given and gave; after the action was sent, which shall not wait for it."""
        step = self._step
        if self._recorder is None or not step.stepped or step.inputs:
            return
        step.inputs = policy.inputs
        step.outputs = {name: values for name, values in policy.outputs.items() if name in self._actions}
        step.chosen = {n: v for n, v in policy.chosen.items() if v.tobytes() != step.outputs[n].tobytes()}
        if self._reward is not None and self._reward.size in (1, self._rows):  # a policy without a return takes any
            step.reward = np.broadcast_to(self._reward.reshape(-1), self._rows)
        counts = policy.counts()
        for name, now in counts.items():
            before = self._counts.get(name)
            clamped = now.clamped > (0 if before is None else before.clamped)
            if clamped.any():
                step.clamped = {**step.clamped, name: clamped}
        self._counts = counts

    def sent(self, action: Any) -> None:
        """An action reached the robot; ``action`` is nobody else's."""
        if self._recorder is not None:
            self._step.sent.append(np.asarray(action))
            self._step.sent_at.append(self._now() - self._began)

    def fault(self, fault: Fault, readings: Readings) -> None:
        """The step has a fault."""
        if self._recorder is None:
            return
        if not self._step.fault:
            self._step.fault, self._step.why = fault.kind, fault.text
            self._step.reading = dict(readings.came)

    def over(self, policy: Policy, account: Account, missed: int) -> None:
        """The step is over."""
        if self._recorder is None:
            return
        self.look(policy)
        self._step.missed = missed
        if self._step.sent:
            self._step.latency = account.last
        self._last = account.steps
        self._recorder.step(self._step)

    def _header(self, policy: Policy) -> FlightHeader:
        origin = self._origin = policy.origin
        self._actions, self._rows = actions_of(policy.spec), policy.spec.batch_size
        task = policy.task
        return FlightHeader(
            number=self._number,
            bundle="" if origin is None else origin.path.name,
            digest="" if origin is None else origin.digest,
            weights="" if origin is None else origin.weights,
            target="" if origin is None else origin.target,
            precision="" if origin is None else origin.precision,
            threads=0 if origin is None else origin.options.get("threads") or 0,
            place=here("" if origin is None else origin.target),
            rate=self._rate,
            ticks=self._ticks,
            began=time.time_ns(),
            spec=policy.spec,
            reward_scale=None if task is None else task.reward_scale,
            release=__version__,
        )
