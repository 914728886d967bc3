"""`inspect --device`: what a model will need and how fast it will be on a device, as tables."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lram_export.cli.console import ConsoleProgress, message, print_facts, print_json, print_table
from lram_export.describe import counted, human_bytes, three_digits
from lram_export.errors import UsageError
from lram_export.model.config import ModelConfig

if TYPE_CHECKING:
    from lram_export.prediction.predict import MachineSpeed, Prediction
    from lram_export.spec.tasks import TaskSpec
    from lram_export.system.devices import DeviceProfile

MEASURABLE = ("onnxruntime", "openvino", "native", "tvm")
"""Targets that run on processors."""


def print_prediction(
    config: ModelConfig,
    task: TaskSpec | None,
    batch: int,
    device_name: str,
    rate: float | None,
    measure_again: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Predict and print; `here` is measured, which takes minutes the first time.

    Raises:
        UsageError: an unknown device.
        LramError: this machine cannot be measured.
    """
    from lram_export.prediction.predict import choose, predict, shipped_speed
    from lram_export.prediction.sizes import family
    from lram_export.system.devices import HERE, find_device

    here, of = device_name == HERE, family(config)
    if here:
        speed, device = _measured(of, measure_again, quiet)
    elif measure_again:
        raise UsageError(f"--measure: only with --device {HERE}")
    else:
        device = find_device(device_name)
        speed = _known_speed(of) or shipped_speed(of)
    predictions = predict(config, device, speed, rate, here, batch, task)
    chosen, reason = choose(predictions)
    if as_json:
        print_json(
            {
                "device": dataclasses.asdict(device),
                "rate": rate,
                "task": None if task is None else task.name,
                "measured": speed.to_json(),
                "predictions": [dataclasses.asdict(p) for p in predictions],
                "choice": None if chosen is None else {"target": chosen.target, "precision": chosen.precision},
                "reason": reason,
            }
        )
        return
    print_facts(f"device {device.name}", _device_facts(device))
    _print_table(predictions, device, speed, rate, here, batch)
    if task is None:
        message("counted: the whole head and the state encoder; --task counts what one task reads", quiet)
    answer = "nothing" if chosen is None else f"{chosen.target} at {chosen.precision}"
    unknown = "; tensorrt, the usual choice there, was not measured" if device.compute_capability else ""
    print_facts("what to choose", [(answer, reason + unknown)])


def _measured(family: str, measure_again: bool, quiet: bool) -> tuple[MachineSpeed, DeviceProfile]:
    from lram_export.exporters import EXPORTERS
    from lram_export.prediction.machine_speed import measure_machine, measured_speed, this_device, with_bandwidth_now
    from lram_export.targets.registry import load_target

    load_target(EXPORTERS, "pytorch")  # says what is missing: small models are exported
    targets = _installed()
    progress = ConsoleProgress(quiet)
    known = None if measure_again else measured_speed(targets, family)
    speed = measure_machine(targets, progress, family) if known is None else with_bandwidth_now(known, progress)
    return speed, this_device(speed)


def _known_speed(family: str) -> MachineSpeed | None:
    """What `--device here` measured on this machine before with models of a family."""
    from lram_export.prediction.machine_speed import measured_speed

    return measured_speed(_installed(), family)


def _installed() -> list[str]:
    from lram_export.exporters import EXPORTERS
    from lram_export.runtimes import unavailable

    return [t for t in MEASURABLE if EXPORTERS[t].missing() is None and unavailable(t) is None]


def _device_facts(device: DeviceProfile) -> list[tuple[str, str]]:
    gpu = "none that TensorRT runs on" if device.compute_capability is None else f"of {device.compute_capability}"
    return [
        ("what it is", device.title),
        ("memory", human_bytes(device.memory)),
        ("bandwidth", f"{device.bandwidth / 1e9:.1f} GB/s"),
        ("cores", str(device.cores)),
        ("instruction sets", ", ".join(device.instruction_sets)),
        ("tvm platform", _tvm_platform(device)),
        ("compute capability", gpu),
        ("source", device.source),
    ]


def _keeps(prediction: Prediction, rate: float) -> str:
    """Whether it keeps the rate; a dash where only the floor is known, and short enough."""
    if not prediction.fits or 1 / rate < prediction.floor:
        return "no"
    return "-" if prediction.margin is None else "yes" if prediction.margin >= 1 else "no"


def _tvm_platform(device: DeviceProfile) -> str:
    from lram_export.targets.tvm.platforms import PLATFORMS

    fitting = [
        name
        for name, platform in PLATFORMS.items()
        if platform.gpu is None
        and platform.machine == device.machine
        and set(platform.features) <= set(device.instruction_sets)
    ]
    return fitting[0] if fitting else "none"


def _print_table(
    predictions: list[Prediction],
    device: DeviceProfile,
    speed: MachineSpeed,
    rate: float | None,
    here: bool,
    batch: int,
) -> None:
    columns = ["target", "precision", "weights", "memory", "floor ms", "step ms"]
    columns += [f"at {rate:g} Hz", "margin"] if rate is not None else []
    rows = []
    for p in predictions:
        row = [
            p.target,
            p.precision,
            human_bytes(p.weights),
            human_bytes(p.memory) + ("" if p.fits else " !"),
            three_digits(1e3 * p.floor),
            "-" if p.seconds is None else three_digits(1e3 * p.seconds),
        ]
        if rate is not None:
            row += [_keeps(p, rate), "-" if p.margin is None else f"{p.margin:.1f} x"]
        rows.append(row)
    notes = [
        f"state: {human_bytes(predictions[0].state)} of {counted(batch, 'row')}, float32",
        f"overhead and efficiency of the targets: measured on {speed.cpu}, {speed.date}, "
        f"{counted(speed.threads, 'thread')}, with models of {speed.family}",
        "the floor is the time to read what a step reads from memory; here a cache makes it shorter"
        if here
        else "assumed: this device computes as fast as the measured machine; on it, --device here measures",
    ]
    if rate is not None:
        notes.append(f"margin: how many times a step fits into the {1e3 / rate:.3g} ms of a period")
    if not all(p.fits for p in predictions):
        notes.append(f"!: too much; the system leaves {human_bytes(device.memory_for_programs)} of the memory")
    if any(p.target == "tensorrt" for p in predictions):
        notes.append("tensorrt was not measured on any GPU: only its floor is known; its memory is that of building it")
        notes.append(
            "the processor of a Jetson reaches less of the bandwidth than its GPU: the other targets are slower"
        )
    if batch > 1:
        notes.append(
            f"a step of {counted(batch, 'row')} counts as more bytes only; with its arithmetic it takes longer"
        )
    print_table(f"one environment step on {device.title}", columns, rows, notes, many=True)
