"""The loop as a program: what is checked before there are motors, what signals do, what is said at the end."""

from __future__ import annotations

import ctypes
import logging
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lram_export.bundle.bundle import Bundle
from lram_export.describe import counted, held_back
from lram_export.errors import LramError, UsageError, describe
from lram_export.flight.recorder import FlightRecorder, check_packages, check_place, open_recorder
from lram_export.interpolation import HOLD, Between
from lram_export.loop.control import Ended, Loop, LoopOptions
from lram_export.loop.rehearsal import STEPS, Rehearsal
from lram_export.loop.robot import Robot, find_robot, made
from lram_export.loop.scheduling import Scheduling
from lram_export.loop.warmup import warm_up
from lram_export.policy import Policy, load_policy
from lram_export.rates import may_spin, other_rate, ticks_per_step
from lram_export.system.files import atomic_file, check_output
from lram_export.system.machine import suitable_threads

LOG = logging.getLogger("lram_export.loop")
RATE = 50.0
"""Hz, where neither the bundle nor its user says one."""


@dataclass(frozen=True)
class Wishes:
    """What a user asks for; see `lram-export loop`. None: what the bundle says, or suits it."""

    bundle: Path
    robot: str | None = None
    observations: Path | None = None
    target: str | None = None
    threads: int | None = None
    rate: float | None = None
    controller_rate: float | None = None
    between: str | None = None
    steps: int = 0
    bridge: int = 10
    by: str = "coast"
    frozen: int = 0
    state: Path | None = None
    resume: bool = False
    record: Path | None = None
    priority: int | None = None
    cpu: int | None = None
    if_permitted: bool = False


def options_of(wishes: Wishes) -> LoopOptions:
    """How to loop; warns of a rate that is not the bundle's.

    Raises:
        LramError: no bundle, or what it cannot be asked for.
    """
    if wishes.controller_rate is None and wishes.between is not None:
        raise UsageError("--between: only with --controller-rate")
    if wishes.robot is not None and wishes.observations is not None:
        raise UsageError("--robot, --observations: give one of them: a rehearsal has no robot")
    if wishes.resume and wishes.state is None:
        raise UsageError("--resume: only with --state, the file to go on from")
    if wishes.state is not None:
        check_output(wishes.state, force=True)
    if wishes.record is not None:
        check_packages()
        check_place(wishes.record)
    manifest = Bundle.open(wishes.bundle).manifest
    rate = wishes.rate or manifest.interface.rate or RATE
    ticks = ticks_per_step(rate, wishes.controller_rate or rate)
    between = Between(ticks, wishes.between or HOLD, manifest.spec.outputs[0].dtype)
    warning = other_rate(str(wishes.bundle), manifest.interface.rate, rate, "controlled")
    if warning is not None:
        LOG.warning("%s", warning)
    steps = wishes.steps or (0 if wishes.robot else STEPS)
    return LoopOptions(rate, between, steps, wishes.bridge, wishes.by, wishes.frozen)


def run_program(wishes: Wishes, say: Callable[[str], None]) -> None:
    """Load, warm up, and only then make the robot; loop, and ``say`` how it went, in lines.

    Raises:
        LramError: what was asked for cannot be had; no motor has moved then.
        SafeStopError: the robot was stopped.
    """
    options = options_of(wishes)
    kind = None if wishes.robot is None else find_robot(wishes.robot)
    scheduling = Scheduling(wishes.priority, wishes.cpu, wishes.if_permitted)
    scheduling.check()
    threads, spin = _threads(wishes), may_spin(options.rate)
    with load_policy(wishes.bundle, target=wishes.target, threads=threads, spin=spin) as policy:
        warm_up(policy)
        resumed = wishes.state is not None and wishes.resume and load_run(policy, wishes.state)
        _lock_memory()
        with _signals(wishes.bundle) as signals, _recorder(wishes) as recorder:  # from here on they stop the motors
            robot = _robot(wishes, policy, kind)
            loop = signals.loop = Loop(policy, robot, options, recorder=recorder, scheduling=scheduling)
            if signals.ending:
                loop.end()
            try:
                loop.run(resumed)
            finally:  # the motors have stopped
                if wishes.state is not None:
                    save_run(policy, wishes.state)
                if recorder is not None:
                    recorder.close()
                for line in _said(loop, policy, options, recorder):
                    say(line)


def load_run(policy: Policy, path: Path) -> bool:
    """Go on from a saved run; whether there was one.

    Raises:
        UsageError: it is of another policy, or not such a file.
    """
    if not path.exists():
        LOG.warning("--resume: %s: not there yet; an episode begins", path)
        return False
    try:
        with np.load(path, allow_pickle=False) as file:
            policy.load_state(dict(file))
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error) if isinstance(error, ValueError) else describe(error)
        raise UsageError(f"--resume: {path}: {reason}; leave --resume out to begin anew") from None
    return True


def save_run(policy: Policy, path: Path) -> None:
    """Save where a run is, whole or not at all; a run that is lost, or a disk that is full, is only logged."""
    try:
        state = policy.state()
        with atomic_file(path, force=True) as temporary, temporary.open("wb") as file:
            np.savez(file, **state)  # type: ignore[arg-type]
    except (LramError, OSError, RuntimeError) as error:
        LOG.warning("--state: %s: not saved: %s", path, describe(error))


def _threads(wishes: Wishes) -> int | None:
    """Threads of the runtime. Once the loop has a core of its own, whoever swaps its bundle counts one core less."""
    if wishes.threads is not None or wishes.cpu is None:
        return wishes.threads
    manifest = Bundle.open(wishes.bundle).manifest
    return suitable_threads(manifest.parameters, manifest.batch_size)


def _robot(wishes: Wishes, policy: Policy, kind: type[Robot] | None) -> Robot:
    if kind is not None:
        return made(kind, str(wishes.robot))
    if wishes.observations is not None:
        return Rehearsal.of_file(wishes.observations, policy)
    return Rehearsal.of_bundle(wishes.bundle, policy)


@contextmanager
def _recorder(wishes: Wishes) -> Iterator[FlightRecorder | None]:
    """The flight recorder, if one is asked for; of a flight that never began nothing is left."""
    if wishes.record is None:
        yield None
        return
    recorder = open_recorder(wishes.record)
    try:
        yield recorder
    finally:
        recorder.close()


class _Signals:
    """SIGTERM and SIGINT end the loop, and nothing interrupts the motors' stop; SIGHUP swaps the bundle anew."""

    def __init__(self, bundle: Path) -> None:
        self.loop: Loop | None = None
        self.ending, self._bundle = False, bundle

    def end(self, number: int, _: object) -> None:
        """A robot that is still being made is waited for, so that it can be closed; not at a second signal."""
        loop = self.loop
        if loop is None:
            if self.ending:
                sys.exit(128 + number)
            self.ending = True
            return
        loop.end()
        if loop.waiting:
            loop.waiting = False
            raise Ended

    def swap(self, number: int, _: object) -> None:
        """Let the bundle take over, where there is a loop."""
        if self.loop is not None:
            self.loop.swap(self._bundle)


@contextmanager
def _signals(bundle: Path) -> Iterator[_Signals]:
    signals = _Signals(bundle)
    handlers: dict[signal.Signals, Callable[[int, object], None]] = {
        signal.SIGTERM: signals.end,
        signal.SIGINT: signals.end,
        signal.SIGHUP: signals.swap,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _lock_memory() -> None:
    """Keep this process out of the swap where that is allowed: MCL_CURRENT and MCL_FUTURE."""
    if ctypes.CDLL(None).mlockall(1 | 2) != 0:
        LOG.warning("memory is not locked: not allowed here (LimitMEMLOCK of a service, ulimit -l)")


def _said(loop: Loop, policy: Policy, options: LoopOptions, recorder: FlightRecorder | None) -> list[str]:
    """How it went."""
    ticks = options.between.ticks
    faster = f", actions at {options.rate * ticks:g} Hz ({options.between.between})" if ticks > 1 else ""
    first = f"{counted(loop.account.steps, 'step')} at {options.rate:g} Hz{faster}: {loop.account}"
    recorded = [] if recorder is None else [str(recorder)]
    return [first, *held_back(policy.counts(), policy.interface), *recorded] if loop.account.steps else []
