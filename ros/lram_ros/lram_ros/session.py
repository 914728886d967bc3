"""A policy, and the thread of its control loop: never more than one."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from pathlib import Path

from lram_export.errors import LramError, describe
from lram_export.flight.recorder import FlightRecorder, open_recorder
from lram_export.loop.account import Account
from lram_export.loop.clock import Clock
from lram_export.loop.control import Loop, LoopOptions
from lram_export.loop.program import Wishes, options_of
from lram_export.loop.robot import Robot
from lram_export.loop.scheduling import Scheduling
from lram_export.loop.warmup import warm_up
from lram_export.policy import Policy, load_policy
from lram_export.rates import may_spin
from lram_export.spec.bounds import MOST_FLOAT32
from lram_ros.ending import EndingClock
from lram_ros.parameters import Settings

LOG = logging.getLogger("lram_export.ros")


class Session:
    """What is between configure and cleanup: a policy that is warmed up; between activate and deactivate, a loop.

    Attributes:
        options: how the loop goes.
        policy: the policy; while a loop runs it is the loop's.
        failure: why the last loop had to stop the robot, in one line; "": it did not.
        bundle: the folder of what runs, as it was told.
        swap_failure: which bundle did not take over and why, in one line; "": the last that was asked for did.
        target_return: what the next episode aims at; None: what the bundle does.
    """

    def __init__(self, policy: Policy, options: LoopOptions, wishes: Wishes) -> None:
        """Of a policy that is warmed up; it is closed with the session."""
        self.policy, self.options, self._wishes = policy, options, wishes
        self.target_return: float | None = None
        self.failure = self.swap_failure = ""
        self.bundle = str(wishes.bundle)
        self._swap: threading.Thread | None = None
        self._loop: Loop | None = None
        self._thread: threading.Thread | None = None
        self._clock: Clock | None = None
        self._ending = False
        self._aims = policy.task is not None and policy.spec.input("return_to_go") is not None

    @classmethod
    def open(cls, settings: Settings) -> Session:
        """Check a bundle, load it and warm it up; raises LramError in one line."""
        wishes = settings.wishes
        options = options_of(wishes)
        scheduling_of(wishes).check()
        policy = load_policy(wishes.bundle, target=wishes.target, threads=wishes.threads, spin=may_spin(options.rate))
        try:
            warm_up(policy)
            session = cls(policy, options, wishes)
            session.aim(settings.target_return)
        except BaseException:
            policy.close()
            raise
        return session

    @property
    def is_running(self) -> bool:
        """Whether there is a loop."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def account(self) -> Account:
        """How the last loop goes, or went."""
        account = Account() if self._loop is None else self._loop.account
        if self._clock is not None:
            account.missed = self._clock.missed
        return account

    @property
    def is_swapping(self) -> bool:
        """Whether a bundle is being loaded that is to take over."""
        return self._swap is not None and self._swap.is_alive()

    def is_ending(self) -> bool:
        """Whether the loop is to end, so that nothing should be waited for."""
        return self._ending

    def aim(self, target_return: float | None) -> None:
        """Aim at a return from the next episode on; raises LramError where the policy aims at none, or not so far."""
        if target_return is not None:
            task = self.policy.task
            if task is None or not self._aims:
                raise LramError("target_return: this policy aims at no return")
            most = min(self.policy.spec.limits.get("return_to_go", math.inf) * task.reward_scale, MOST_FLOAT32)
            if abs(target_return) > most:
                raise LramError(f"target_return: expected at most {most:g}, got {target_return:g}")
        self.target_return = target_return

    def begin(self) -> None:
        """The loop's thread begins an episode; what is aimed at stays so when it resets the policy by itself."""
        if not self._aims:
            return
        task = self.policy.task
        assert task is not None
        self.policy.reset(target_return=task.target_return if self.target_return is None else self.target_return)

    def start(
        self, robot: Robot, clock: Callable[[float], Clock] | None = None, over: Callable[[], None] = lambda: None
    ) -> None:
        """Loop in a thread, which calls ``over`` when it ends by itself or is ended; by ``clock``, or in real time.

        Raises:
            LramError: one does already, or a flight cannot be recorded.
        """
        if self.is_running:
            raise LramError("a loop runs already")
        record = self._wishes.record
        recorder = None if record is None else open_recorder(record)

        def made(period: float) -> Clock:
            self._clock = EndingClock(period, self.is_ending) if clock is None else clock(period)
            return self._clock

        self.failure = self.swap_failure = ""
        self._ending = False
        self.options.between.reset()
        scheduling = scheduling_of(self._wishes)
        try:
            loop = Loop(self.policy, robot, self.options, clock=made, recorder=recorder, scheduling=scheduling)
            thread = threading.Thread(target=self._run, args=(loop, recorder, over), name="loop", daemon=True)
            self._loop = loop
            thread.start()
        except BaseException:
            if recorder is not None:
                recorder.close()
            raise
        self._thread = thread

    def _run(self, loop: Loop, recorder: FlightRecorder | None, over: Callable[[], None]) -> None:
        try:
            loop.run()
        except LramError as error:
            self.failure = str(error)
        except Exception as error:  # whatever it is, it must not be lost with the thread
            self.failure = f"stopped: {describe(error)}"
        if self.failure:
            LOG.error("%s", self.failure)
        if recorder is not None:
            recorder.close()
            LOG.info("%s", recorder)
        over()

    def stop(self, seconds: float = 5.0) -> bool:
        """End the loop, which stops the robot; whether it ended in time."""
        self._ending = True
        loop, thread = self._loop, self._thread
        if loop is not None:
            loop.end()
        if thread is not None and thread is not threading.current_thread():
            thread.join(seconds)
        return not self.is_running

    def new_episode(self) -> None:
        """Begin an episode at the next step; raises LramError where no loop runs."""
        self._running().new_episode()

    def swap(self, bundle: str | Path) -> None:
        """Let a bundle take over between two steps; it is loaded beside the loop, which logs what came of it.

        Raises:
            LramError: no loop runs, or another bundle is being loaded.
        """
        loop = self._running()
        if self.is_swapping:
            raise LramError("another bundle is being loaded; ask again when it runs, or could not be loaded")

        def over(failure: str) -> None:
            if failure:
                self.swap_failure = f"{bundle}: not swapped: {failure}"
            else:
                self.bundle, self.swap_failure = str(bundle), ""

        self._swap = loop.swap(bundle, over)

    def _running(self) -> Loop:
        if self._loop is None or not self.is_running:
            raise LramError("not active")
        return self._loop

    def close(self) -> bool:
        """End the loop and free the policy; whether that could be done."""
        if not self.stop():
            return False
        self.policy.close()
        return True


def scheduling_of(wishes: Wishes) -> Scheduling:
    """Where and how the loop's thread runs."""
    return Scheduling(wishes.priority, wishes.cpu, wishes.if_permitted)
