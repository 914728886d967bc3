"""What groups of weights are worth: `int8` and `int8g` of one checkpoint, beside float32 and beside each other.

    python benchmarks/weight_groups.py CHECKPOINT [--recording STEPS.npz ...] [--windows 60] [--threads 2]

CHECKPOINT as `lram-export export` takes it, or a published size (`16m` to `408m`, random weights). Accuracy: the model
with the dequantized weights (codes rounded to nearest) against float32, over the recorded episodes, or over random
steps. Speed: the target `native`, both precisions in turns of a few steps; of each window the fastest step counts, of
the windows the median, so that another program on the machine costs little. `--windows 0` leaves speed out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lram_export import ExportOptions, export_bundle, load_policy
from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.checkpoints.random import preset_config, random_checkpoint
from lram_export.episodes.batches import batch_episodes, split_episodes
from lram_export.episodes.steps import random_steps
from lram_export.lowering import lower
from lram_export.quantization.calibration import load_calibration
from lram_export.quantization.episode_runs import outputs
from lram_export.quantization.quantize import QuantizationOptions, quantize
from lram_export.spec.cost import quantization_cost
from lram_export.spec.tasks import TaskSpec, resolve_task

PRECISIONS = ("int8", "int8g")
PRESETS = ("16m", "48m", "110m", "206m", "408m")
STEPS_OF_A_WINDOW = 5


def accuracy(checkpoint: Checkpoint, task: TaskSpec, recordings: Sequence[Path], steps: int) -> None:
    """Print a row per precision: bytes, relative logit error, action values that differ."""
    policy = lower(checkpoint, task, name="policy")
    if recordings:
        episodes = load_calibration(recordings, policy.spec).episodes
    else:
        episodes = tuple(split_episodes([random_steps(policy.spec, task, steps, episode=min(steps, 32))]))
    batches = batch_episodes(episodes)
    expected = outputs(policy.graph, batches)
    for precision in PRECISIONS:
        quantized = quantize(policy, QuantizationOptions(precision))
        cost = quantization_cost(policy.spec, policy.bin_width, expected, outputs(quantized.graph, batches))
        print(
            f"{precision}: {quantized.weight_bytes / 1e6:.2f} MB, relative logit error {cost.relative_error:.5f}, mean "
            f"{cost.mean_logit_error:.5f}; {cost.actions_different} of {cost.actions} action values differ, "
            f"{cost.beyond_one_bin} by more than one bin",
            flush=True,
        )


def speed(checkpoint: Checkpoint, task: TaskSpec, windows: int, threads: int) -> None:
    """Print milliseconds per step of each precision, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        policies = []
        for precision in PRECISIONS:
            quantization = QuantizationOptions(precision)
            options = ExportOptions(("native",), reference_steps=4, quantization=quantization, report=False)
            bundle = export_bundle(checkpoint, task, Path(folder) / f"{precision}.lram", options)
            policies.append(load_policy(bundle.path, "native", threads=threads))
        observation = np.zeros(task.observation_dim or 0, np.float32)
        fastest: list[list[float]] = [[] for _ in policies]
        for _ in range(windows):
            for policy, found in zip(policies, fastest, strict=True):
                times = []
                for _ in range(STEPS_OF_A_WINDOW):
                    start = time.perf_counter()
                    policy.act(observation)
                    times.append(time.perf_counter() - start)
                found.append(1e3 * min(times))
        for policy in policies:
            policy.close()
    for precision, found in zip(PRECISIONS, fastest, strict=True):
        print(f"{precision}: {np.median(found):.3f} ms, least {min(found):.3f}")
    ratio = np.array(fastest[1]) / np.array(fastest[0])
    print(f"int8g / int8: {np.median(ratio):.3f} (medians {np.median(fastest[1]) / np.median(fastest[0]):.3f})")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--task", default="metaworld/reach-v2")
    parser.add_argument("--recording", type=Path, action="append", default=[])
    parser.add_argument("--steps", type=int, default=64, help="random steps without a recording")
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    name, task = arguments.checkpoint, resolve_task(arguments.task)
    random = name in PRESETS
    checkpoint = random_checkpoint(preset_config(name), name) if random else load_checkpoint(name)
    print(f"{name}, {'recorded' if arguments.recording else 'random'} steps", flush=True)
    accuracy(checkpoint, task, arguments.recording, arguments.steps)
    if arguments.windows:
        speed(checkpoint, task, arguments.windows, arguments.threads)


if __name__ == "__main__":
    main()
