"""Does memory grow, or does a state leave the finite numbers, however long a policy runs?

Steps random observations through one policy that is never reset, and prints resident memory, the largest value of
the state and the median latency as it goes. Exits with 1 if memory grew or a number was not finite.

    python benchmarks/long_run.py policy.lram --target native --steps 1000000
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import numpy as np

from lram_export.episodes.steps import random_steps
from lram_export.policy import Policy, load_policy

INPUTS = 4096
"""Observations are drawn once and cycled through."""

ROUNDS = 20
WARM_UP = 3
"""Rounds before memory is compared: the allocator keeps some of what the first readings of the state take."""
ALLOWED_GROWTH = 1 << 20
"""Bytes: pages that the interpreter touches late are no leak; one float per step would be four times as much."""


@click.command()
@click.argument("bundle")
@click.option("--target", default=None, help="Default: the first installed.")
@click.option("--steps", default=1_000_000, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(bundle: str, target: str | None, steps: int, threads: int) -> None:
    """Run and print."""
    policy = load_policy(bundle, target, threads=threads)
    observations = random_steps(policy.spec, policy.task, INPUTS, seed=5)["observation"]
    started_with, finite = 0, True
    for number in range(ROUNDS + 1):  # the first warms up
        seconds = []
        for step in range(number * steps // ROUNDS - steps // ROUNDS, number * steps // ROUNDS):
            start = time.perf_counter()
            policy.act(observations[step % INPUTS])
            seconds.append(time.perf_counter() - start)
            finite = finite and bool(np.isfinite(policy.action_logits).all())
        largest = largest_state(policy)
        finite = finite and bool(np.isfinite(largest))
        median = 1e3 * float(np.median(seconds))
        del seconds
        memory = resident_memory()
        if number < WARM_UP:
            started_with = memory
        done = number * steps // ROUNDS
        print(f"{done:9d} steps: {memory / 2**20:.1f} MiB, largest {largest:.3g}, {median:.4f} ms", flush=True)
    grown = memory - started_with
    print(f"memory grew by {grown / 2**10:.0f} KiB; {'no NaN, no infinity' if finite else 'NOT FINITE'}")
    sys.exit(0 if finite and grown < ALLOWED_GROWTH else 1)


def largest_state(policy: Policy) -> float:
    """Largest magnitude of the recurrent state; NaN if it holds one."""
    return float(np.max([np.abs(a).max() for n, a in policy.state().items() if n.startswith("state.")]))


def resident_memory() -> int:
    """Bytes of this process that lie in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


if __name__ == "__main__":
    main()
