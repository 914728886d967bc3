"""Measures this machine for `predict.py`: bandwidth by working set, every target on two small models.

The two models are of the family of the model asked about and have four blocks each, of the narrowest and of the widest
published size, so that one lies in the caches of most machines and the other does not. What is measured is kept in the
user's cache folder.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from lram_export.benchmark.bench import BenchOptions, BenchResult, Contender, bench_together
from lram_export.benchmark.probes import ReadBandwidth
from lram_export.bundle.bundle import Bundle
from lram_export.describe import counted
from lram_export.errors import LramError
from lram_export.model.config import ModelConfig
from lram_export.prediction.predict import STREAMING, MachineSpeed, TargetSpeed
from lram_export.prediction.sizes import computes, moved_bytes, state_bytes, weight_bytes, work
from lram_export.progress import SILENT, Progress
from lram_export.spec.tasks import resolve_task
from lram_export.system.cache import CompileCache
from lram_export.system.devices import HERE, DeviceProfile
from lram_export.system.files import scratch_directory
from lram_export.system.machine import cpu_features, cpu_model, total_memory, usable_cores
from lram_export.system.processes import end_with_parent, interrupts_held
from lram_export.version import __version__

PRECISIONS_MEASURED = ("fp32", "bf16", "int8", "int4")
BLOCKS = 4
TASK = resolve_task("metaworld/reach-v2")
"""What the small models are exported for."""
STEPS = {"16m": 1000, "206m": 120}
"""By width: a step of the small one takes a fraction of a millisecond."""
BANDWIDTH_SIZES = tuple(2**n for n in range(22, 29))  # 4 to 256 MiB
_LEAST_PER_BLOCK = 1e-6
_MOST_EFFICIENT = 4.0
"""No cache is more times as fast as the probe of the bandwidth found for the model's size."""


def measured_speed(targets: Sequence[str], family: str = "xlstm") -> MachineSpeed | None:
    """What was measured on this machine before with models of a family, with the versions that are installed now; None
    if nothing was."""
    content = CompileCache.of("machine").read(_identity(targets, family))
    if content is None:
        return None
    try:
        return MachineSpeed.from_json(json.loads(content.tobytes()))
    except (ValueError, KeyError, TypeError):
        return None


def measure_machine(targets: Sequence[str], progress: Progress = SILENT, family: str = "xlstm") -> MachineSpeed:
    """Measure with models of a family, and keep it. Takes minutes; whatever target fails is left out.

    Raises:
        LramError: no target could be measured.
    """
    threads = usable_cores()
    curves = []

    def measure_curve() -> None:
        with progress.stage("measuring the bandwidth"):
            curves.append(measure_bandwidth(threads))

    measure_curve()
    with scratch_directory() as folder:
        contenders: list[Contender] = []
        for precision in PRECISIONS_MEASURED:
            for width in STEPS:
                bundle = _export(folder, small_model(width, family), width, precision, targets, progress)
                if bundle is not None:
                    contenders += [Contender(f"{width} {precision} {t}", bundle, t) for t in bundle.targets]
        results: dict[tuple[str, str, str], BenchResult] = {}
        # a few at a time: the processes of all of them would not fit into a small machine's memory
        for precision in PRECISIONS_MEASURED:
            for width, steps in STEPS.items():
                chosen = [c for c in contenders if c.name.startswith(f"{width} {precision} ")]
                if chosen:
                    for name, result in _bench(chosen, BenchOptions((), threads, steps=steps), progress).items():
                        results[width, precision, name.split()[2]] = result
            measure_curve()
    # the speed of a shared machine's memory swings within seconds
    bandwidth = {size: float(np.median([curve[size] for curve in curves])) for size in BANDWIDTH_SIZES}
    speeds = []
    for precision in PRECISIONS_MEASURED:
        for target in targets:
            pair = results.get(("16m", precision, target)), results.get(("206m", precision, target))
            if pair[0] is not None and pair[1] is not None:
                speeds.append(fit(target, precision, pair[0], pair[1], bandwidth, family))
    if not speeds:
        raise LramError("no target could be measured on this machine; lram-export doctor says which run here")
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    speed = MachineSpeed(cpu_model(), threads, today, bandwidth, tuple(speeds), _versions(), family)
    CompileCache.of("machine").write(_identity(targets, family), memoryview(json.dumps(speed.to_json()).encode()))
    return speed


def with_bandwidth_now(speed: MachineSpeed, progress: Progress = SILENT) -> MachineSpeed:
    """What was measured before, with the bandwidth of these seconds: that of a shared machine differs by the hour."""
    with progress.stage("measuring the bandwidth"):
        return speed.with_bandwidth(measure_bandwidth(speed.threads))


def _bench(contenders: list[Contender], options: BenchOptions, progress: Progress) -> dict[str, BenchResult]:
    """Results by name; what fails is left out."""
    broken: list[str] = []

    def failed(contender: Contender, error: LramError) -> None:
        broken.append(contender.name)

    report = bench_together(contenders, options, progress, failed)
    alive = [contender.name for contender in contenders if contender.name not in broken]
    return dict(zip(alive, report.results, strict=True))


def this_device(speed: MachineSpeed) -> DeviceProfile:
    """The machine it runs on as a profile; its bandwidth is that of the largest working set measured."""
    return DeviceProfile(
        name=HERE,
        title=f"this machine ({speed.cpu})",
        memory=total_memory() or 0,
        bandwidth=speed.bandwidth[max(speed.bandwidth)],
        cores=usable_cores(),
        instruction_sets=cpu_features(),
        compute_capability=None,
        source=f"targets measured on {speed.date} with {counted(speed.threads, 'thread')}, the bandwidth now",
    )


def small_model(width: str, family: str = "xlstm") -> ModelConfig:
    """Four blocks of a published size of a family."""
    from lram_export.checkpoints.random import preset_config

    backbone, *context = family.split()
    published = preset_config(width, backbone)
    sizes: Any = published.backbone
    few = dataclasses.replace(published, backbone=dataclasses.replace(sizes, num_blocks=BLOCKS))
    return few.in_context(context[0] if context else None)


def measure_bandwidth(threads: int) -> dict[int, float]:
    """Read bandwidth by working set, in a process of its own: the probe's threads must not be numpy's."""
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        with ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent) as pool:
            with interrupts_held():
                found = pool.submit(_bandwidth_curve, threads)
            return found.result()
    finally:
        if before is None:
            del os.environ["OPENBLAS_NUM_THREADS"]
        else:
            os.environ["OPENBLAS_NUM_THREADS"] = before


def _bandwidth_curve(threads: int) -> dict[int, float]:
    found = {}
    for size in BANDWIDTH_SIZES:
        with ReadBandwidth(threads, size) as probe:
            found[size] = float(np.median([probe.measure() for _ in range(5)]))
    return found


def fit(
    target: str,
    precision: str,
    small: BenchResult,
    large: BenchResult,
    bandwidth: dict[int, float],
    family: str = "xlstm",
) -> TargetSpeed:
    """The two numbers of a target that make both models of a family take as long as they took."""
    curve, largest = MachineSpeed("", 0, "", bandwidth, ()), bandwidth[max(bandwidth)]
    wide = small_model("206m", family)
    streaming = not computes(wide) and large.floor_ratio <= 1 / STREAMING
    streams, seconds, weights, memory = [], [], [], []
    for width, result in (("16m", small), ("206m", large)):
        config = small_model(width, family)
        weight = weight_bytes(config, precision, TASK)
        moved = moved_bytes(config, precision, TASK)
        amount = work(config, precision, TASK)
        streams.append(amount / (curve.bandwidth_of(weight + state_bytes(config)) if streaming else largest))
        # times of the large one belong to the bandwidth measured beside them, so they are brought to the usual one
        usual = result.floor_ratio * moved / largest
        seconds.append(usual if width == "206m" and streaming else result.p50_ms / 1e3)
        weights.append(weight)
        memory.append((result.peak_memory or 0) - 2 * state_bytes(config))
    # a large model that took hardly longer than the small one, by noise, would be a stream of no time
    slope = max((seconds[1] - seconds[0]) / (streams[1] - streams[0]), 1 / _MOST_EFFICIENT)
    overhead = min(seconds[0] - slope * streams[0], seconds[1] - streams[1] / _MOST_EFFICIENT)
    per_block = max(overhead / BLOCKS, _LEAST_PER_BLOCK)
    slope = (seconds[1] - BLOCKS * per_block) / streams[1]  # the large one exactly, where the small one has no room
    factor = max((memory[1] - memory[0]) / (weights[1] - weights[0]), 1.0)
    base = max(int(memory[0] - factor * weights[0]), 0)
    return TargetSpeed(target, precision, per_block, 1 / slope, base, factor, streaming)


def _export(
    folder: Path, config: ModelConfig, width: str, precision: str, targets: Sequence[str], progress: Progress
) -> Bundle | None:
    """A bundle of a small model with every target that runs the precision; None if there is none."""
    from lram_export.checkpoints.random import random_checkpoint
    from lram_export.export import ExportOptions, TargetFailure, export_bundle
    from lram_export.exporters import EXPORTERS
    from lram_export.quantization.quantize import QuantizationOptions

    chosen = [target for target in targets if precision in EXPORTERS[target].precisions]
    if not chosen:
        return None
    failures: dict[str, TargetFailure] = {}
    path = folder / f"{width}-{precision}.lram"
    options = ExportOptions(
        chosen, reference_steps=4, quantization=QuantizationOptions(precision=precision), report=False
    )
    with progress.stage(f"exporting {BLOCKS} blocks of {width} at {precision}"):
        try:
            checkpoint = random_checkpoint(config, folder)
            return export_bundle(checkpoint, TASK, path, options, SILENT, failures)
        except LramError:
            return None


def _identity(targets: Sequence[str], family: str) -> dict[str, object]:
    return {
        "family": family,
        "sizes": "of the task",
        "cpu": cpu_model(),
        "features": cpu_features(),
        "threads": usable_cores(),
        "targets": list(targets),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {"lram-export": __version__}
    for package in ("onnxruntime", "openvino", "apache-tvm", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
