"""A control loop around a bundle: a fixed rate, an account of missed deadlines, motors stopped whatever happens.

Without --robot it rehearses: the observations recorded in the bundle go in, actions go nowhere. Needs no torch.
"""

import argparse
import ctypes
import importlib
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from lram_export import load_policy


class Rehearsal:
    """Stands in for a robot: recorded observations, no motors."""

    def __init__(self, bundle: Path) -> None:
        with np.load(bundle / "reference.npz", allow_pickle=False) as recorded:
            self._observations = recorded["observation"]
        self._step = 0

    def reset(self) -> np.ndarray:
        self._step = 0
        return self.observe()

    def observe(self) -> np.ndarray:
        observation: np.ndarray = self._observations[self._step % len(self._observations)]
        self._step += 1
        return observation

    def act(self, action: np.ndarray) -> None:
        """Actions go nowhere; there is no reward."""

    def close(self) -> None:
        """No motors to stop."""


def stop(robot: Any) -> None:
    """Stop the motors; nothing may interrupt that."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    robot.close()


def lock_memory() -> None:
    """Keep this process out of the swap where that is allowed: MCL_CURRENT and MCL_FUTURE."""
    if ctypes.CDLL(None).mlockall(1 | 2) != 0:
        print("memory is not locked: not allowed here (see LimitMEMLOCK in lram-control.service)", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--target", help="default: the bundle's first that runs here")
    parser.add_argument("--rate", type=float, default=50.0, help="steps per second (50)")
    parser.add_argument("--steps", type=int, default=0, help="stop after so many; 0: never (rehearsal: 500)")
    parser.add_argument("--robot", help="module with a class Robot, e.g. robot; default: rehearse")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    robot = importlib.import_module(arguments.robot).Robot() if arguments.robot else Rehearsal(arguments.bundle)
    steps = arguments.steps or (0 if arguments.robot else 500)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that `finally` runs
    period, missed = 1 / arguments.rate, 0
    seconds: list[float] = []
    try:
        with load_policy(arguments.bundle, target=arguments.target) as policy:
            lock_memory()
            policy.reset()
            observation, reward = robot.reset(), None
            due = time.perf_counter()
            try:
                while not steps or len(seconds) < steps:
                    started = time.perf_counter()
                    action = policy.act(observation, reward=reward)
                    reward = robot.act(action)
                    seconds.append(time.perf_counter() - started)
                    if len(seconds) > 100_000:  # an endless loop keeps the last minutes only
                        del seconds[:50_000]
                    due += period
                    left = due - time.perf_counter()
                    if left > 0:
                        time.sleep(left)
                    else:  # late: the next step starts now, not two at once
                        missed += 1
                        due = time.perf_counter()
                    observation = robot.observe()
            finally:
                stop(robot)  # before anything else that may take time
    except KeyboardInterrupt:
        pass
    finally:
        stop(robot)
        if seconds:
            milliseconds = 1000 * np.array(seconds)
            p50, p99 = np.percentile(milliseconds, (50, 99))
            print(
                f"{len(seconds)} steps at {arguments.rate:g} Hz: p50 {p50:.2f} ms, p99 {p99:.2f} ms, "
                f"largest {milliseconds.max():.2f} ms, {missed} missed deadlines"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
