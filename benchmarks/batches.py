"""What a row of a batch costs on the target `native`: `python benchmarks/batches.py BUNDLE [--ways WAY ...]`.

A way is ROWS:STATE:KERNELS, such as `16:lazy-fp16:avx512vnni`: rows per step, `LRAM_NATIVE_STATE_FORMAT`, `LRAM_ISA`.
One process loads the bundle once for each and times whole steps (`Policy.act`, then `Policy.settle`) in short windows
that take turns, each round in another order. Printed are, for each way, the fastest step of a window per row (median of
the windows) by the wall clock and in processor time of all threads, and the ratio of each to the first way (median over
the rounds, and its quartiles). Where other programs take the cores, go by the processor time of one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lram_export import load_policy
from lram_export.episodes.steps import random_steps
from lram_export.policy import Policy
from lram_export.system.load import LoadWatch
from lram_export.system.machine import cpu_model
from lram_export.targets.native.options import STATE_FORMAT

CLOCKS = (time.perf_counter, time.process_time)
DEFAULT_WAYS = ("1:float32:avx512vnni", "16:float32:avx512vnni", "16:lazy-fp16:avx512vnni", "16:lazy-fp16:avx512amx")


class Way(NamedTuple):
    """How a step is computed."""

    rows: int
    state: str
    kernels: str


def way(text: str) -> Way:
    """Read ROWS:STATE:KERNELS."""
    rows, state, kernels = text.split(":")
    return Way(int(rows), state, kernels)


def loaded(bundle: Path, threads: int, chosen: Way) -> Policy:
    """A policy that computes that way."""
    os.environ[STATE_FORMAT] = chosen.state
    os.environ["LRAM_ISA"] = chosen.kernels
    return load_policy(bundle, "native", threads=threads, batch=chosen.rows)


def fastest(policy: Policy, observations: np.ndarray, steps: int) -> tuple[float, ...]:
    """Seconds per row of the fastest of some steps, by either clock, after one that is not timed."""
    rows = len(observations[0])
    found = []
    for step in range(steps + 1):
        before = [clock() for clock in CLOCKS]
        policy.act(observations[step % len(observations)])
        policy.settle()
        found.append([(clock() - start) / rows for clock, start in zip(CLOCKS, before, strict=True)])
    return tuple(min(times) for times in zip(*found[1:], strict=True))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--ways", type=way, nargs="+", default=[way(text) for text in DEFAULT_WAYS])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10, help="windows of each way")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a window")
    arguments = parser.parse_args()
    watch = LoadWatch()
    policies = [loaded(arguments.bundle, arguments.threads, chosen) for chosen in arguments.ways]
    one = policies[0]
    random = random_steps(one.spec, one.task, 8)[one.spec.inputs[0].name][:, :1]
    observations = [np.repeat(random, chosen.rows, axis=1) for chosen in arguments.ways]
    seconds: list[list[tuple[float, ...]]] = [[] for _ in policies]
    for number in range(arguments.rounds):
        for turn in range(len(policies)):
            at = (number + turn) % len(policies)
            seconds[at].append(fastest(policies[at], observations[at], arguments.steps))
    print(f"{cpu_model()}, {arguments.threads} threads, {arguments.bundle.name}: milliseconds per row")
    for chosen, times in zip(arguments.ways, seconds, strict=True):
        clocks = []
        for clock in range(len(CLOCKS)):
            ratios = [new[clock] / old[clock] for new, old in zip(times, seconds[0], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            ms = 1e3 * statistics.median(each[clock] for each in times)
            clocks.append(f"{ms:8.3f}, ratio {middle:.3f} ({low:.3f} to {high:.3f})")
        print(f"  {':'.join(map(str, chosen)):28}{clocks[0]}; processor{clocks[1]}")
    load = watch.stop()
    if load.others is not None:
        print(f"other programs used {load.others:.1f} of {load.cpus} CPUs")


if __name__ == "__main__":
    main()
