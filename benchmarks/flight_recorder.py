"""What the flight recorder costs a control loop: steps with one and without, in turns.

    python benchmarks/flight_recorder.py BUNDLE [--target native] [--rate 200] [--seconds 10] [--rounds 4]

A rehearsal loops over the bundle's own observations, with noise of a standard deviation of 1. The latency of a step
runs from its reading to its action; the processor time is that of the whole process, the recorder's thread included.
Rounds without and with a recorder take turns, so that what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export import Policy, load_policy
from lram_export.flight.reader import read_flight
from lram_export.flight.recorder import FlightRecorder
from lram_export.interpolation import Between
from lram_export.loop.control import Loop, LoopOptions
from lram_export.loop.rehearsal import Rehearsal
from lram_export.loop.warmup import warm_up

NOISE = np.random.default_rng(0)


@dataclass(frozen=True)
class Round:
    """Latencies (N,) in seconds; seconds of processor per second; missed deadlines; bytes of the file per step."""

    latency: NDArray[np.float64]
    cpu: float
    missed: int
    size: float = 0.0


class Noisy(Rehearsal):
    """Recorded observations as a sensor has them: never the same twice, so that a file is as large as a real one."""

    def observe(self) -> dict[str, NDArray[Any]]:
        """The next step's observation."""
        seen = super().observe()
        return {
            name: values + NOISE.standard_normal(values.shape, np.float32) if values.dtype == np.float32 else values
            for name, values in seen.items()
        }


def fly(policy: Policy, bundle: Path, rate: float, seconds: float, path: Path | None) -> Round:
    """Loop for a while; with a path, and record."""
    recorder = None if path is None else FlightRecorder(path)
    steps = max(int(rate * seconds), 1)
    robot = Noisy.of_bundle(bundle, policy)
    loop = Loop(policy, robot, LoopOptions(rate, Between(), steps=steps), recorder=recorder)
    began, cpu = time.perf_counter(), time.process_time()
    loop.run()
    share = (time.process_time() - cpu) / (time.perf_counter() - began)
    size = 0.0
    if recorder is not None and path is not None:
        recorder.close()
        assert read_flight(path).count == steps
        size = path.stat().st_size / steps
        path.unlink()
    return Round(loop.account.seconds, share, loop.account.missed, size)


def row(name: str, rounds: list[Round]) -> str:
    """One contender."""
    latency = 1e6 * np.concatenate([found.latency for found in rounds])
    p50, p99 = np.percentile(latency, (50, 99))
    cpu = 100 * np.mean([found.cpu for found in rounds])
    missed = sum(found.missed for found in rounds)
    return f"{name:<18} p50 {p50:7.1f} us  p99 {p99:8.1f} us  {cpu:5.2f}% of a core  {missed} missed deadlines"


def main() -> None:
    """Read the command line, loop, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--target", default=None)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    without, recorded = [], []
    with load_policy(args.bundle, args.target, threads=1) as policy, tempfile.TemporaryDirectory() as folder:
        warm_up(policy)
        fly(policy, args.bundle, args.rate, 1.0, None)
        for number in range(args.rounds):
            without.append(fly(policy, args.bundle, args.rate, args.seconds, None))
            path = Path(folder) / f"{number}.mcap"
            recorded.append(fly(policy, args.bundle, args.rate, args.seconds, path))
    print(row("without", without))
    print(row("with a recorder", recorded))
    print(f"{np.mean([found.size for found in recorded]):.0f} bytes a step")


if __name__ == "__main__":
    main()
