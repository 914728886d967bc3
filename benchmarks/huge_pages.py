"""What huge pages save a step of the target `native`: `python benchmarks/huge_pages.py BUNDLE... [--threads N ...]`.

One process loads a bundle once for each value of `LRAM_NATIVE_HUGE_PAGES` and times whole steps (`Policy.act`) in short
windows that take turns, each round in another order. Printed are, for each value, the fastest step of a window (median
of the windows) by the wall clock and in processor time of all threads, the ratio of each to that without huge pages
(median over the rounds, and its quartiles), and what lies in huge pages. Other programs meet all values alike; where
they take the cores, go by the processor time of one thread. `--loads N` times instead what opening the artifact and
creating a state take, N times in turns; the checksum, which Python leaves out, is not compared.

Other variables, such as `LRAM_NATIVE_STATE_FORMAT`, hold for all.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from lram_export import _native, load_policy
from lram_export.bundle.bundle import Bundle
from lram_export.describe import human_bytes
from lram_export.episodes.steps import random_steps
from lram_export.policy import Policy
from lram_export.system.load import LoadWatch
from lram_export.system.machine import cpu_model
from lram_export.targets.native.options import HUGE_PAGES, IN_HUGE_PAGES

MODEL = Path("native") / "model.lrn"
Times = tuple[float, float]
"""Seconds of the wall clock, and of the processor."""


def timed(work: Callable[[], object]) -> Times:
    """Seconds that something takes."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def fastest(times: Iterable[Times]) -> Times:
    """The least by either clock."""
    wall, processor = zip(*times, strict=True)
    return min(wall), min(processor)


def in_turns(rounds: int, measure: Callable[[str], Times]) -> dict[str, list[Times]]:
    """What is measured of each value in every round, each time in another order."""
    found: dict[str, list[Times]] = {value: [] for value in IN_HUGE_PAGES}
    for number in range(rounds):
        first = number % len(IN_HUGE_PAGES)
        for value in (*IN_HUGE_PAGES[first:], *IN_HUGE_PAGES[:first]):
            found[value].append(measure(value))
    return found


def loaded(bundle: Path, threads: int, value: str) -> Policy:
    """A policy whose memory is asked for as the value says."""
    os.environ[HUGE_PAGES] = value
    return load_policy(bundle, "native", threads=threads)


def time_steps(bundle: Path, threads: int, rounds: int, steps: int) -> None:
    """Print a line for each value."""
    policies = {value: loaded(bundle, threads, value) for value in IN_HUGE_PAGES}
    one = next(iter(policies.values()))
    observations = random_steps(one.spec, one.task, 16)[one.spec.inputs[0].name]

    def window(value: str) -> Times:
        policy = policies[value]
        for observation in observations[:2]:
            policy.act(observation)
        return fastest(timed(lambda: policy.act(observations[step % 16])) for step in range(steps))  # noqa: B023

    seconds = in_turns(rounds, window)
    print(f"{bundle.name}, {policies['0'].runtime.state_format} state, {threads} threads")
    for value, policy in policies.items():
        clocks = []
        for clock in (0, 1):
            ratios = [new[clock] / old[clock] for new, old in zip(seconds[value], seconds["0"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            ms = 1e3 * statistics.median(times[clock] for times in seconds[value])
            clocks.append(f"{ms:8.3f} ms, ratio {middle:.3f} ({low:.3f} to {high:.3f})")
        memory = policy.runtime.memory()  # type: ignore[attr-defined]
        print(
            f"  {value:6}{clocks[0]}; processor{clocks[1]}; in huge pages: {human_bytes(memory.huge_state)} of "
            f"{human_bytes(memory.state)} of state, {human_bytes(memory.huge_weights)} of "
            f"{human_bytes(memory.weights)} of weights"
        )
        policy.close()


def time_loads(bundle: Path, threads: int, rounds: int) -> None:
    """Print a line for each value."""
    rows = Bundle.open(bundle).manifest.batch_size
    models: list[_native.Model] = []

    def opened(value: str) -> Times:
        models.clear()
        return timed(
            lambda: models.append(_native.Model(str(bundle / MODEL), threads=threads, huge_pages=value, verify=False))
        )

    def created(value: str) -> Times:
        opened(value)
        return timed(lambda: _native.State(models[0], rows))

    print(f"{bundle.name}: milliseconds by the wall clock, of the processor")
    for name, work in (("open", opened), ("create and free a state", created)):
        for value, times in in_turns(rounds, work).items():
            wall, processor = (1e3 * statistics.median(each) for each in zip(*times, strict=True))
            print(f"  {name:24}{value:6}{wall:8.1f}{processor:8.1f}")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=40, help="windows of each value")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a window")
    parser.add_argument("--loads", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{cpu_model()}, kernels {_native.chosen_instruction_set()}")
    watch = LoadWatch()
    for bundle in arguments.bundles:
        for threads in arguments.threads:
            if arguments.loads:
                time_loads(bundle, threads, arguments.loads)
            else:
                time_steps(bundle, threads, arguments.rounds, arguments.steps)
    load = watch.stop()
    if load.others is not None:
        print(f"other programs used {load.others:.1f} of {load.cpus} CPUs")


if __name__ == "__main__":
    main()
