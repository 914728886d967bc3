"""A control loop around a bundle: a fixed rate, an account of missed deadlines, motors stopped whatever happens.

The rate is the bundle's unless told another, which is warned of. A controller that is faster is sent an action at every
tick of its own: the same again, or on a straight line from what it was sent last to the policy's next one.

Where a step has no result (a NaN from a sensor), the last action is held, for a few steps; after more of them in a row
the loop stops. Without --robot it rehearses: the observations recorded in the bundle go in, actions go nowhere. Needs
no torch.
"""

import argparse
import ctypes
import importlib
import math
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lram_export import load_policy
from lram_export.bundle.bundle import Bundle
from lram_export.errors import LramError, UsageError
from lram_export.interpolation import BETWEEN, HOLD, Between
from lram_export.policy import Policy, observations_of
from lram_export.rates import other_rate, ticks_per_step
from lram_export.verification.verify import load_bundle_reference

KEPT = 100_000
"""Steps whose times are kept for the percentiles: an endless loop knows its last minutes."""

MOST_HELD = 10
"""Steps in a row without a result after which the loop stops, unless --hold says otherwise."""

RATE = 50.0
"""Hz, where neither the bundle nor --rate says one."""


class Rehearsal:
    """Stands in for a robot: recorded observations and, where the policy wants one, rewards; no motors."""

    def __init__(self, path: Path) -> None:
        bundle = Bundle.open(path)
        task, recorded = bundle.manifest.task, load_bundle_reference(bundle).inputs
        names = [tensor.name for tensor in observations_of(bundle.manifest.spec)]
        self._observations = [{name: recorded[name][i] for name in names} for i in range(len(recorded))]
        feedback = task is not None and task.reward_feedback == "observed"
        # recorded as the token of the step after
        self._rewards = recorded["reward"] * task.reward_scale if task is not None and feedback else None
        self._step, self._reward = 0, None

    def reset(self) -> "dict[str, np.ndarray]":
        self._step = 0
        return self.observe()

    def observe(self) -> "dict[str, np.ndarray]":
        observation = self._observations[self._step % len(self._observations)]
        self._step += 1
        self._reward = None if self._rewards is None else self._rewards[self._step % len(self._rewards)]
        return observation

    def act(self, action: "np.ndarray | np.int64") -> "np.ndarray | None":
        """Actions go nowhere. A step's reward comes once, with the first of them."""
        reward, self._reward = self._reward, None
        return reward

    def close(self) -> None:
        """No motors to stop."""


class Account:
    """How a run went."""

    def __init__(self) -> None:
        self.steps = self.missed = self.held = self.held_in_a_row = 0
        self.largest = 0.0
        self._seconds: deque[float] = deque(maxlen=KEPT)

    def add(self, seconds: float) -> None:
        """Count a step."""
        self.steps += 1
        self.largest = max(self.largest, seconds)
        self._seconds.append(seconds)

    def __str__(self) -> str:
        p50, p99 = np.percentile(1000 * np.array(self._seconds), (50, 99))
        over = f" (of the last {KEPT:,})" if self.steps > KEPT else ""
        return (
            f"p50 {p50:.2f} ms, p99 {p99:.2f} ms{over}, largest {1000 * self.largest:.2f} ms, "
            f"{counted(self.missed, 'missed deadline')}, {counted(self.held, 'held action')}"
        )


class NoResultError(Exception):
    """Too many ticks in a row without a result."""


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def control(
    policy: Policy, robot: Any, account: Account, rate: float, steps: int, hold: int, between: "Between | None" = None
) -> None:
    """Observe, act, send, wait for the next step; ``steps`` times, or for ever with 0.

    A step without a result changes nothing in the policy: the last action is sent again, if there is one. What rewards
    came meanwhile is added to that of the next step, as are the rewards of all ticks of a step.

    Args:
        rate: of the policy, Hz.
        hold: how many steps in a row may have no result.
        between: what is sent at the ticks of a step, which share its period; default: one tick.

    Raises:
        NoResultError: more than ``hold`` steps in a row had no result.
    """
    between = between or Between()
    period = 1 / (rate * between.ticks)
    policy.reset()
    between.reset()
    observation, action, reward = robot.reset(), None, None
    due = time.perf_counter()
    while not steps or account.steps < steps:
        started = time.perf_counter()
        owed = None
        try:
            action = policy.act(observation, reward=reward)
            account.held_in_a_row = 0
        except (ValueError, LramError) as error:
            account.held += 1
            account.held_in_a_row += 1
            owed = reward if usable(reward) else None
            if account.held_in_a_row == 1:
                print(f"step {account.steps}: no result, the last action is held: {error}", file=sys.stderr, flush=True)
            if account.held_in_a_row > hold:
                many = counted(account.held_in_a_row, "step")
                raise NoResultError(f"stopped: {many} in a row without a result: {error}") from None
        if action is not None:
            between.aim(action)
        reward, tick = owed, 0
        while tick < between.ticks:
            if action is not None:
                reward = added(robot.act(between.at(tick)), reward)
            if tick == 0:
                account.add(time.perf_counter() - started)
            tick += 1
            due += period
            late = time.perf_counter() - due
            if late < 0:
                time.sleep(-late)
                continue
            account.missed += 1
            passed = min(int(late / period), between.ticks - tick)  # ticks that are over are left out, not made up for
            tick += passed
            due += passed * period
            if tick == between.ticks:  # the next step starts now, not two at once
                due = time.perf_counter()
        observation = robot.observe()


def usable(reward: Any) -> bool:
    try:
        return reward is not None and bool(np.isfinite(np.asarray(reward, np.float64)).all())
    except (TypeError, ValueError):
        return False


def added(reward: Any, owed: Any) -> Any:
    if owed is None:
        return reward
    return owed if reward is None else np.add(reward, owed)


def stop(robot: Any) -> None:
    """Stop the motors; nothing may interrupt that."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    robot.close()


def lock_memory() -> None:
    """Keep this process out of the swap where that is allowed: MCL_CURRENT and MCL_FUTURE."""
    if ctypes.CDLL(None).mlockall(1 | 2) != 0:
        print("memory is not locked: not allowed here (see LimitMEMLOCK in lram-control.service)", file=sys.stderr)


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise ValueError
        return int(text)

    number.__name__ = f"number of at least {least}"  # argparse puts it into the message
    return number


def hertz(text: str) -> float:
    if not 0 < float(text) < math.inf:
        raise ValueError
    return float(text)


def parse(arguments: "list[str] | None" = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--target", help="default: the bundle's first that runs here")
    parser.add_argument("--threads", type=at_least(1), help="of the target; default: what suits the model")
    parser.add_argument("--rate", type=hertz, help=f"steps per second; default: the bundle's, or {RATE:g}")
    parser.add_argument("--controller-rate", type=hertz, help="actions per second, a multiple of the rate; default: it")
    parser.add_argument(
        "--between", choices=BETWEEN, help=f"with --controller-rate: what is sent between two steps ({HOLD})"
    )
    parser.add_argument("--steps", type=at_least(0), default=0, help="stop after so many; 0: never (rehearsal: 500)")
    parser.add_argument(
        "--hold",
        type=at_least(0),
        default=MOST_HELD,
        help=f"steps in a row to hold the last action before a stop ({MOST_HELD})",
    )
    parser.add_argument("--robot", help="module with a class Robot, e.g. robot; default: rehearse")
    return parser.parse_args(arguments)


def pace(arguments: argparse.Namespace) -> "tuple[float, Between]":
    """How often a second the policy steps, and what the robot is sent meanwhile.

    Raises:
        LramError: no bundle, or what it cannot be asked for.
    """
    manifest = Bundle.open(arguments.bundle).manifest
    rate = arguments.rate or manifest.interface.rate or RATE
    if arguments.controller_rate is None and arguments.between is not None:
        raise UsageError("--between: only with --controller-rate")
    ticks = ticks_per_step(rate, arguments.controller_rate or rate)
    between = Between(ticks, arguments.between or HOLD, manifest.spec.outputs[0].dtype)
    warning = other_rate(str(arguments.bundle), manifest.interface.rate, rate, "controlled")
    if warning is not None:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    return rate, between


def main() -> int:
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that `finally` runs
    sys.path.insert(0, str(Path(__file__).parent))
    account, paced = Account(), ""
    try:
        rate, between = pace(arguments)  # before there is a robot
        paced = f"{rate:g} Hz"
        if between.ticks > 1:
            paced += f", actions at {rate * between.ticks:g} Hz ({between.between})"
        robot = importlib.import_module(arguments.robot).Robot() if arguments.robot else Rehearsal(arguments.bundle)
        steps = arguments.steps or (0 if arguments.robot else 500)
        try:
            with load_policy(arguments.bundle, target=arguments.target, threads=arguments.threads) as policy:
                lock_memory()
                try:
                    control(policy, robot, account, rate, steps, arguments.hold, between)
                finally:
                    stop(robot)  # before anything else that may take time
        finally:
            stop(robot)
    except KeyboardInterrupt:
        pass
    except (NoResultError, LramError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if account.steps:
            print(f"{counted(account.steps, 'step')} at {paced}: {account}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
