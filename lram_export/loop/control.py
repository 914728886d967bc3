"""The loop: observe, act, send, wait. What fails is bridged for a while, then the robot is stopped."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lram_export.describe import counted
from lram_export.errors import LramError, describe
from lram_export.flight import events
from lram_export.flight.recorder import Recorder
from lram_export.interpolation import Between
from lram_export.loop.account import Account
from lram_export.loop.clock import Clock
from lram_export.loop.readings import MISSING, Fault, Readings
from lram_export.loop.robot import DONE, EVENTS, NEW_EPISODE, Robot
from lram_export.loop.scheduling import LoopThread, Scheduling
from lram_export.loop.service import Notifier
from lram_export.loop.warmup import warm_up
from lram_export.loop.watch import Watch
from lram_export.observations import Observation
from lram_export.policy import Policy

LOG = logging.getLogger("lram_export.loop")
COAST, HOLD = "coast", "hold"
NO_RESULT, NOT_SENT, STALE, NO_EVENT = "no result", "not sent", "stale", "no event"
LONGEST_NAP = 0.1
"""Seconds between two looks at what is asked of a loop that waits for an episode."""

LEAST_STALE = 0.05
"""Seconds that an action may be old, however fast the loop is meant to be."""

Reading = Observation | Fault | None
"""What a robot observed, or why there is nothing."""


@dataclass(frozen=True)
class LoopOptions:
    """How to loop.

    Attributes:
        rate: steps of the policy per second, Hz.
        between: what the robot is sent at the ticks of a step, which share its period.
        steps: after how many to end; 0: never.
        bridge: how many steps in a row may have a fault; at the next the robot is stopped.
        by: what is done at a fault: ``coast``: the policy steps on over the last good reading; ``hold``: it waits, and
            the last action is sent again.
        frozen: how many readings in a row may be the same to the bit; 0: any number.
    """

    rate: float
    between: Between
    steps: int = 0
    bridge: int = 10
    by: str = COAST
    frozen: int = 0


class SafeStopError(LramError):
    """The robot had to be stopped; why, in one line."""


class Ended(BaseException):
    """The loop is to end while it waits for a reading, which may never come; raised by a signal handler.

    No error, and nothing that a robot's class should catch.
    """


class Loop:
    """A policy and a robot. :meth:`run` is called once; the other methods are for other threads meanwhile.

    Attributes:
        account: how it goes.
        waiting: whether it waits for the robot to be read.
    """

    def __init__(
        self,
        policy: Policy,
        robot: Robot,
        options: LoopOptions,
        notifier: Notifier | None = None,
        clock: Callable[[float], Clock] = Clock,
        recorder: Recorder | None = None,
        scheduling: Scheduling | None = None,
    ) -> None:
        """The loop closes the robot, whatever happens, neither policy nor recorder. ``clock`` makes one of a period,
        seconds."""
        self.account, self.waiting = Account(), False
        self._policy, self._robot, self._options = policy, robot, options
        self._notifier = notifier or Notifier()
        self._interface = policy.interface
        self._readings = Readings(policy.spec, policy.interface, options.frozen)
        period = 1 / options.rate
        self._clock = clock(period / options.between.ticks)
        self._thread = LoopThread(scheduling or Scheduling())
        self._watch = Watch(recorder, options.rate, options.between.ticks, self._clock.now)
        self._stale = max((options.bridge + 2) * period, LEAST_STALE)
        # plain flags: a signal handler sets them, which must not wait for a lock that the loop may hold
        self._ending = self._restarting = False
        self._in_a_row, self._event_fails = 0, False
        self._read_at = self._good_at = self._clock.now()  # of the last reading, and of the last good one
        self._chosen_at: float | None = None  # when the reading was taken by which the action in hand was chosen
        self._action: Any = None  # the one in hand
        self._sent: Any = None  # the last that reached the robot
        self._told: Any = None  # what the policy's bounds are from, where that is known
        self._unsure = True  # nothing was sent yet, or sending it failed and it may have reached the robot all the same
        self._reward: Any = None

    def end(self) -> None:
        """End after the step under way."""
        self._ending = True

    def new_episode(self) -> None:
        """Begin an episode at the next step: the policy's, and the robot's by its ``reset``."""
        self._restarting = True

    def swap(self, bundle: str | Path, over: Callable[[str], None] = lambda failure: None) -> threading.Thread:
        """Let another bundle take over between two steps; it is loaded in a thread, which logs what came of it.

        ``over`` is told, too: why it failed, in one line, or "".
        """

        def load() -> None:
            failure = ""
            try:
                self._thread.aside()
                kept = self._policy.swap(bundle, prepare=warm_up)
            except Exception as error:  # whatever it is, the loop goes on with what it has
                failure = describe(error)
                LOG.warning("%s: not swapped, the loop goes on as it was: %s", bundle, failure)
            else:
                LOG.info("%s: runs now%s", bundle, "" if kept else "; of other weights, so every row starts anew")
            over(failure)

        thread = threading.Thread(target=load, name="swap", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads may be had
            LOG.warning("%s: not swapped, the loop goes on as it was: %s", bundle, error)
            over(describe(error))
        return thread

    def run(self, resumed: bool = False) -> None:
        """Loop until the steps are done, :meth:`end` is called, or the robot has to be stopped.

        Args:
            resumed: the policy goes on where it is; so the robot is not reset, but observed.

        Raises:
            SafeStopError: a robot that cannot be reset or closed, more steps in a row with a fault than may be
                bridged, or anything else that the loop cannot go on with.
        """
        try:
            self._watch.begin(self._policy)
            self._thread.enter()
            reading = self._resume() if resumed else self._reset()
            self._clock.start()
            self._notifier.ready()
            while not self._is_over():
                self._step(reading)
                self._notifier.alive()
                reading = self._next()
        except SafeStopError as error:
            self._watch.event(events.STOPPED, str(error))
            self._stop()
            raise
        except Exception as error:
            self._watch.event(events.STOPPED, describe(error))
            self._stop()
            raise SafeStopError(f"stopped: {describe(error)}") from error
        finally:
            stopped = sys.exc_info()[1]
            self._notifier.stopping()
            self.account.missed = self._clock.missed
            try:
                self._close(stopped)
            finally:
                self._thread.leave()
                self._watch.event(events.ENDED, str(self.account))  # which takes its time: the motors have stopped

    def _is_over(self) -> bool:
        return self._ending or 0 < self._options.steps <= self.account.steps

    def _stop(self) -> None:
        stop = getattr(self._robot, "stop", None)
        if stop is not None:
            try:
                stop()
            except Exception as error:  # close() is still to come
                LOG.error("the robot's stop() failed: %s", describe(error))

    def _close(self, stopped: BaseException | None) -> None:
        """``stopped``: what went wrong before, if anything did."""
        try:
            self._robot.close()
        except Exception as error:
            before = f"{stopped}; then " if isinstance(stopped, SafeStopError) else ""
            raise SafeStopError(
                f"{before}the robot's close() failed, its motors may run on: {describe(error)}"
            ) from None

    def _begin(self) -> None:
        self._policy.reset()
        self._options.between.reset()
        self._readings.start()
        self._chosen_at = self._action = self._sent = self._told = self._reward = None
        self._unsure = True
        self.account.episodes += 1
        self._watch.event(events.EPISODE)

    def _resume(self) -> Reading:
        """Go on in the middle of an episode; what the last step brought, nobody knows any more."""
        if self._policy.spec.input("reward") is not None:
            self._reward = np.zeros(self._policy.spec.batch_size, np.float32)
        self.account.episodes += 1
        self._watch.event(events.RESUMED)
        return self._read(self._robot.observe)

    def _reset(self) -> Reading:
        """Begin an episode where the robot begins one; its first reading."""
        self._begin()
        try:
            with self._waited():
                reading = self._robot.reset()
            self._read_at = self._clock.now()
            return reading
        except Ended:
            return None
        except Exception as error:
            raise SafeStopError(f"the robot's reset() failed: {describe(error)}") from None

    def _step(self, reading: Reading) -> None:
        """Act on a reading, and send the actions of a step."""
        started = self._clock.now()
        self._watch.start(self.account.steps, self._read_at)
        if self._policy.interface is not self._interface:  # another bundle took over
            self._interface = self._policy.interface
            self._readings.are_of(self._policy.spec, self._interface)
        fault = self._readings.failed(reading) if isinstance(reading, Fault) else self._readings.check(reading)
        if fault is None:
            self._good_at = self._read_at
        result: Fault | None = Fault(NO_RESULT, "")
        if self._readings.last is not None and (fault is None or self._options.by == COAST):
            result = self._act()
            fault = fault or result
        if result is not None:
            self._options.between.again()
        self._note(fault)
        between, tick, unsent, over = self._options.between, 0, None, False
        while tick < between.ticks:
            unsent = self._send(tick) or unsent
            if tick == 0:
                self.account.add(self._clock.now() - started)
                self._watch.look(self._policy)
            if tick == between.ticks - 1:  # before the wait, so that it takes none of the next step's time
                self._finish(fault, unsent)
                over = True
            tick += self._clock.wait(between.ticks - tick)
        if not over:  # its last tick was left out
            self._finish(fault, unsent)

    def _finish(self, fault: Fault | None, unsent: Fault | None) -> None:
        """All actions of a step were sent, or could not be."""
        with suppress(RuntimeError):  # somebody else has the policy, or closed it: the next step will say so
            self._policy.settle()
        if fault is None:
            self._note(unsent)
            if unsent is None:
                self._recovered()
        self._watch.over(self._policy, self.account, self._clock.missed)

    def _act(self) -> Fault | None:
        """Let the policy step over the last good reading."""
        assert self._readings.last is not None
        try:
            self._tell_what_is_held()
            self._ask_what_it_brought()
            self._watch.acting(self._policy)
            began = self._clock.now()
            self._action = self._told = self._policy.act(self._readings.last, reward=self._reward)
        except (ValueError, RuntimeError, LramError) as error:
            if str(error).startswith("reward") or not _usable(self._reward):
                self._reward = None
            return Fault(NO_RESULT, str(error))
        self._watch.acted(self._policy, self._reward, self._clock.now() - began)
        self._options.between.aim(self._action)
        self._chosen_at, self._reward = self._good_at, None
        return None

    def _tell_what_is_held(self) -> None:
        """The policy's bounds are from what the robot holds, which may not be what was chosen last."""
        holds = getattr(self._robot, "holds", None)
        if self._unsure and holds is not None and self._policy.counts():
            try:
                self._policy.hold(holds())
            except Exception as error:  # an action in hand is sent again: whichever the robot holds, it is near
                raise RuntimeError(f"the robot's holds() failed: {describe(error)}") from None
            self._told = None
            return
        if self._sent is None or np.array_equal(self._sent, self._told):
            return
        name = self._policy.spec.outputs[0].name
        if name in self._policy.counts():
            self._policy.hold({name: self._sent})
        self._told = self._sent

    def _ask_what_it_brought(self) -> None:
        """The reward of a robot that is asked for it, rather than to answer an action with it."""
        ask = getattr(self._robot, "brought", None)
        if ask is None:
            return
        try:
            self._reward = _added(ask(), self._reward)
        except Exception as error:
            raise RuntimeError(f"the robot's brought() failed: {describe(error)}") from None

    def _send(self, tick: int) -> Fault | None:
        """Send the action of a tick, if there is one that is not too old."""
        if self._chosen_at is None:
            return None
        age = self._clock.now() - self._chosen_at
        if age > self._stale:
            self.account.stale += 1
            return Fault(STALE, f"chosen by a reading of {1000 * age:.0f} ms ago, at most {1000 * self._stale:.0f}")
        between = self._options.between
        action = between.at(tick)
        sent = np.copy(action)  # the robot may change its own
        try:
            reward = self._robot.act(action)
        except Exception as error:
            between.unsent()
            self._unsure = True
            return Fault(NOT_SENT, describe(error))
        self._sent, self._unsure = sent, False
        self._watch.sent(sent)
        try:
            self._reward = _added(reward, self._reward)
        except (TypeError, ValueError) as error:
            return Fault(NO_RESULT, f"reward: {describe(error)}")
        return None

    def _note(self, fault: Fault | None) -> None:
        """Count a fault; raises SafeStopError where it is one too many."""
        if fault is None:
            return
        self.account.faults[fault.kind] += 1
        self._watch.fault(fault, self._readings)
        self._in_a_row += 1
        if self._in_a_row > self._options.bridge:
            steps = counted(self._in_a_row, "step")
            self._watch.over(self._policy, self.account, self._clock.missed)
            raise SafeStopError(f"stopped: {steps} in a row with a fault, the last: {fault}")
        self.account.bridged += 1
        if self._in_a_row == 1:
            self._watch.event(events.FAULT, str(fault))
            LOG.warning("step %d: %s; bridged", self.account.steps, fault)

    def _recovered(self) -> None:
        if self._in_a_row:
            self._watch.event(events.RECOVERED, f"after {counted(self._in_a_row, 'step')} with a fault")
            LOG.info("step %d: good again, after %s with a fault", self.account.steps, counted(self._in_a_row, "step"))
        self._in_a_row = 0

    def _next(self) -> Reading:
        """The next reading, which may be an episode's first."""
        event = self._event()
        if event == DONE:
            event = self._idle()
        if self._restarting:
            self._restarting = False
            return self._reset()
        if event == NEW_EPISODE:
            self._begin()
        return self._read(self._robot.observe)

    def _idle(self) -> str | None:
        """Do nothing until the next episode; the event that begins it."""
        self._watch.event(events.DONE)
        LOG.info("step %d: the episode is done; waiting for the next", self.account.steps)
        event = None
        while event != NEW_EPISODE and not (self._restarting or self._ending):
            self._clock.sleep(min(1 / self._options.rate, LONGEST_NAP))
            self._notifier.alive()
            event = self._event()
        self._clock.start()
        return event

    def _event(self) -> str | None:
        ask = getattr(self._robot, "event", None)
        try:
            event: str | None = None if ask is None else ask()
        except Exception as error:
            self.account.faults[NO_EVENT] += 1
            self._watch.event(events.NO_EVENT, describe(error))
            if not self._event_fails:
                LOG.warning("step %d: the robot's event() failed: %s", self.account.steps, describe(error))
            self._event_fails = True
            return None
        self._event_fails = False
        if event is not None and not (isinstance(event, str) and event in EVENTS):
            raise SafeStopError(f"the robot's event(): expected one of {', '.join(EVENTS)} or None, got {event!r}")
        return event

    def _read(self, read: Callable[[], Observation | None]) -> Reading:
        try:
            with self._waited():
                reading = read()
            self._read_at = self._clock.now()
            return reading
        except Ended:
            return None
        except Exception as error:  # a robot's class is foreign code, and so is what it reads with
            return Fault(MISSING, describe(error))

    @contextmanager
    def _waited(self) -> Iterator[None]:
        """While the robot is read, which may take for ever: then a signal may interrupt it, see :class:`Ended`."""
        self.waiting = True
        try:
            if self._ending:
                raise Ended
            yield
        finally:
            self.waiting = False


def _usable(reward: Any) -> bool:
    try:
        return reward is not None and bool(np.isfinite(np.asarray(reward, np.float64)).all())
    except (TypeError, ValueError):
        return False


def _added(reward: Any, owed: Any) -> Any:
    """Rewards of several ticks; one that is not known adds nothing."""
    if owed is None:
        return reward.copy() if isinstance(reward, np.ndarray) else reward  # the robot may fill its own anew
    return owed if reward is None else np.add(reward, owed)
