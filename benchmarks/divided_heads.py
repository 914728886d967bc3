"""How far a step of the target `native` gains from threads that share heads: `python benchmarks/divided_heads.py`.

A head is one thread's as long as heads come out even among threads, and is divided among several where they do not. So
what dividing costs shows on two cores: an xLSTM of a published size with one head, or three, for two threads, beside
the same size with four heads, of which each thread has two. Weights are random. Their number is nearly the same; the
state of one head is four times that of four.

Policies are exported once into a folder, `native` only. One process holds them all, with each number of threads, and
times whole steps (`Policy.act`) in short windows that take turns, each round in another order. Printed are the fastest
step of a window (median of the windows), and its ratio to that of one thread (median over the rounds, and its
quartiles): half is all that two threads can give, and memory that one thread nearly fills gives less.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

from lram_export import _native, load_policy
from lram_export.backbones.xlstm.config import preset_sizes
from lram_export.checkpoints.random import preset_config, random_checkpoint
from lram_export.episodes.steps import random_steps
from lram_export.export import ExportOptions, export_bundle
from lram_export.policy import Policy
from lram_export.quantization.quantize import QuantizationOptions
from lram_export.spec.tasks import resolve_task
from lram_export.system.load import LoadWatch
from lram_export.system.machine import cpu_model

TASK = "metaworld/reach-v2"
OBSERVATIONS = 16
"""How many there are, which steps take in turn."""


def exported(folder: Path, preset: str, heads: int, precision: str) -> Path:
    """A policy with so many heads; what is there already is used again."""
    path = folder / f"{preset}-{heads}heads-{precision}.lram"
    if not path.exists():
        backbone = dataclasses.replace(preset_sizes(preset), num_heads=heads)
        config = dataclasses.replace(preset_config(preset), backbone=backbone)
        options = ExportOptions(
            targets=("native",), reference_steps=2, report=False, quantization=QuantizationOptions(precision)
        )
        export_bundle(random_checkpoint(config, folder), resolve_task(TASK), path, options)
    return path


class Contender:
    """A policy with a number of threads, and the fastest step of each of its windows."""

    def __init__(self, bundle: Path, threads: int) -> None:
        self.name, self.threads = bundle.stem, threads
        self.policy: Policy = load_policy(bundle, "native", threads=threads)
        self.seconds: list[float] = []
        drawn = random_steps(self.policy.spec, self.policy.task, OBSERVATIONS)
        self._observations = drawn[self.policy.spec.inputs[0].name]

    def window(self, steps: int) -> None:
        """Time some steps, after two that bring it back into the caches."""
        taken = []
        for step in range(steps + 2):
            observation = self._observations[step % OBSERVATIONS]
            start = time.perf_counter()
            self.policy.act(observation)
            self.policy.settle()
            taken.append(time.perf_counter() - start)
        self.seconds.append(min(taken[2:]))


def measure(bundles: list[Path], threads: list[int], rounds: int, steps: int) -> None:
    """Print a line for each policy and number of threads."""
    contenders = [Contender(bundle, count) for bundle in bundles for count in threads]
    for number in range(rounds):
        first = number % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            contender.window(steps)
    alone = {contender.name: contender.seconds for contender in contenders if contender.threads == threads[0]}
    for contender in contenders:
        ratios = [new / old for new, old in zip(contender.seconds, alone[contender.name], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        ms = 1e3 * statistics.median(contender.seconds)
        print(f"{contender.name:24}{contender.threads:3} threads{ms:9.3f} ms, {middle:.3f} ({low:.3f} to {high:.3f})")
        contender.policy.close()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="48m", help="published size; its heads must divide its inner width")
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 3, 4])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="ratios are to the first")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--rounds", type=int, default=40, help="windows of each")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a window")
    parser.add_argument("--folder", type=Path, help="where policies are kept; default: nowhere")
    arguments = parser.parse_args()
    watch = LoadWatch()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bundles = [exported(folder, arguments.preset, heads, arguments.precision) for heads in arguments.heads]
        print(f"{cpu_model()}, kernels {_native.chosen_instruction_set()}")
        measure(bundles, arguments.threads, arguments.rounds, arguments.steps)
    load = watch.stop()
    if load.others is not None:
        print(f"other programs used {load.others:.1f} of {load.cpus} CPUs")


if __name__ == "__main__":
    main()
