"""How long a step will take and how much memory it needs, on a machine that is not here or was measured before.

A step is a stream through memory plus what every block costs besides: with the bytes that a step moves (or, of a model
whose step computes longer than it streams, its multiplications: :func:`~lram_export.prediction.sizes.computes`),

    seconds = blocks * per_block + bytes / (efficiency * bandwidth)

``per_block`` and ``efficiency`` are a target's, measured on two small models
(`lram_export/prediction/machine_speed.py`). For a target that streams, the bandwidth is the memory's, or that of a
cache which the model fits into; another machine is predicted with its own bandwidth and the two numbers measured here.
For one that is limited by its arithmetic instead, far below the bandwidth, it is always that of the machine where it
was measured: a faster memory would not help it. That another machine computes as fast as this one is assumed, so a slow
processor can be slower.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from itertools import pairwise
from typing import Any

from lram_export.model.config import ModelConfig
from lram_export.prediction.sizes import computes, family, moved_bytes, products, state_bytes, weight_bytes
from lram_export.spec.precision import MIXED
from lram_export.spec.tasks import TaskSpec
from lram_export.system.devices import DeviceProfile

REACHABLE = 0.8
"""Share of the bandwidth a maker states that reads reach; an assumption. What was measured on this machine
has it in."""

STREAMING = 0.6
"""Share of the read bandwidth from which on a target counts as limited by it."""

COMFORTABLE = 2.0
"""Margin of a step against the period that leaves a control loop room for everything else."""


@dataclass(frozen=True)
class TargetSpeed:
    """What one target costs at one precision.

    Attributes:
        per_block: seconds per block besides the stream.
        efficiency: share of the read bandwidth that the stream reaches; over 1 where a cache holds what the probe of
            the bandwidth does not.
        streams: whether memory limits it; else ``efficiency`` is relative to the bandwidth of the largest working set
            at the time of the measurement, and stands for a time per byte.
        base_memory, memory_factor: bytes of a process, and of it per byte of weights.
    """

    target: str
    precision: str
    per_block: float
    efficiency: float
    base_memory: int
    memory_factor: float
    streams: bool = True

    def memory(self, weights: int, state: int) -> int:
        """Bytes of a process with that many bytes of weights and of state."""
        return int(self.base_memory + self.memory_factor * weights) + 2 * state


@dataclass(frozen=True)
class MachineSpeed:
    """What was measured on a machine: read bandwidth by working set (bytes -> bytes per second), and the targets with
    models of a :func:`~lram_export.prediction.sizes.family`."""

    cpu: str
    threads: int
    date: str
    bandwidth: Mapping[int, float]
    targets: tuple[TargetSpeed, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    family: str = "xlstm"

    def bandwidth_of(self, working_set: int) -> float:
        """Bytes per second over a working set, interpolated between the sizes that were measured."""
        sizes = sorted(self.bandwidth)
        if working_set <= sizes[0]:
            return self.bandwidth[sizes[0]]
        for low, high in pairwise(sizes):
            if working_set <= high:
                share = math.log(working_set / low) / math.log(high / low)
                return float(self.bandwidth[low] * (self.bandwidth[high] / self.bandwidth[low]) ** share)
        return self.bandwidth[sizes[-1]]

    def with_bandwidth(self, bandwidth: Mapping[int, float]) -> MachineSpeed:
        """The same targets with the memory as it is at another time; those that do not stream take as long."""
        change = self.bandwidth[max(self.bandwidth)] / bandwidth[max(bandwidth)]
        targets = tuple(t if t.streams else replace(t, efficiency=t.efficiency * change) for t in self.targets)
        return replace(self, bandwidth=bandwidth, targets=targets)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of :meth:`from_json`."""
        return {**asdict(self), "bandwidth": {str(size): speed for size, speed in self.bandwidth.items()}}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> MachineSpeed:
        """Read what :meth:`to_json` wrote; raises KeyError, TypeError or ValueError."""
        return MachineSpeed(
            cpu=str(document["cpu"]),
            threads=int(document["threads"]),
            date=str(document["date"]),
            bandwidth={int(size): float(speed) for size, speed in document["bandwidth"].items()},
            targets=tuple(TargetSpeed(**target) for target in document["targets"]),
            versions=dict(document["versions"]),
            family=str(document["family"]),
        )


@dataclass(frozen=True)
class Prediction:
    """One target at one precision on a device. Seconds and bytes; ``seconds`` is None where nothing was measured.

    ``margin`` is how many times a step fits into the period of the rate asked for; None without either.
    """

    target: str
    precision: str
    weights: int
    state: int
    memory: int
    fits: bool
    floor: float
    seconds: float | None
    margin: float | None


def shipped_speed(family: str = "xlstm") -> MachineSpeed:
    """The measurement that comes with the package, for machines on which nothing was measured: with models of a family,
    if there is one, else with others, from which memory is known."""
    text = (files("lram_export") / "prediction" / "speed.json").read_text(encoding="utf-8")
    shipped = [MachineSpeed.from_json(document) for document in json.loads(text)]
    return next((speed for speed in shipped if speed.family == family), shipped[0])


def predict(
    config: ModelConfig,
    device: DeviceProfile,
    speed: MachineSpeed,
    rate: float | None,
    here: bool = False,
    batch: int = 1,
    task: TaskSpec | None = None,
) -> list[Prediction]:
    """Every target and precision that was measured, on a device; with ``here`` the device is the measured machine.

    Where ``speed`` was measured with models of another family, memory is all that is known; so it is on another device
    for a model that its arithmetic limits, as a device is known by its memory's bandwidth. ``rate`` is that of the
    control loop, in Hz; ``batch`` the rows of a step, each with a state of its own: only more
    bytes, so that many rows, whose arithmetic counts, take longer than this. A Jetson also gets the target `tensorrt`,
    of which only the floor and the memory are known, that of building the engine included. ``task`` says which weights
    a step reads; without one the whole head counts.
    """
    from lram_export.targets.tensorrt import memory as tensorrt

    known = speed.family == family(config) and (here or not computes(config))
    found = []
    for measured in speed.targets:
        weights, state = weight_bytes(config, measured.precision, task), batch * state_bytes(config)
        bandwidth = speed.bandwidth_of(weights + state) if here else device.bandwidth
        seconds = _seconds(config, measured, speed, bandwidth, here, batch, task) if known else None
        memory = measured.memory(weights, state)
        names = measured.target, measured.precision
        fits = memory <= device.memory_for_programs
        found.append(_prediction(*names, weights, state, memory, fits, bandwidth, seconds, rate))
    if device.compute_capability is not None:
        for precision in ("fp32", "fp16", "int8", "int4"):
            weights, state = weight_bytes(config, precision, task), batch * state_bytes(config)
            needed = tensorrt.Memory.of_sizes(weights, state)
            own = needed.most, needed.fits(device), device.bandwidth
            found.append(_prediction("tensorrt", precision, weights, state, *own, None, rate))
    return found


_LIKE = {"fp16": "bf16", "int8g": "int8", "w8a8": "int8", MIXED: "int8"}
"""Precision -> a measured one that a target keeps in memory alike."""


def process_memory(
    target: str, precision: str, weights: int, state: int, speed: MachineSpeed | None = None
) -> int | None:
    """Bytes that a process which runs a target needs, for that many bytes of weights and of state (of all rows).

    From what was measured of the target (default: what the package comes with) at this precision or at one that lies in
    memory alike; `tensorrt` from what its libraries are assumed to take. None where nothing is known of the target.
    """
    from lram_export.targets.tensorrt.memory import Memory

    if target == "tensorrt":
        return Memory.of_sizes(weights, state).running
    own = {t.precision: t for t in (speed or shipped_speed()).targets if t.target == target}
    measured = own.get(precision) or own.get(_LIKE.get(precision, precision))
    if measured is not None:
        return measured.memory(weights, state)
    return max((t.memory(weights, state) for t in own.values()), default=None)


def _seconds(
    config: ModelConfig,
    measured: TargetSpeed,
    speed: MachineSpeed,
    bandwidth: float,
    here: bool,
    batch: int,
    task: TaskSpec | None,
) -> float:
    if computes(config):
        rate = measured.efficiency * speed.bandwidth[max(speed.bandwidth)]
        amount = batch * products(config)
    else:
        rate = _reached(measured, speed, bandwidth, here)
        amount = moved_bytes(config, measured.precision, task) + 2 * (batch - 1) * state_bytes(config)
    return config.backbone.num_blocks * measured.per_block + amount / rate


def _reached(measured: TargetSpeed, speed: MachineSpeed, bandwidth: float, here: bool) -> float:
    """Bytes per second that a target takes, where the memory gives ``bandwidth``."""
    if not measured.streams:
        own = measured.efficiency * speed.bandwidth[max(speed.bandwidth)]
        return own if here else min(own, REACHABLE * bandwidth)
    # an efficiency over 1 is this machine's cache, which another one need not have
    return bandwidth * (measured.efficiency if here else REACHABLE * min(measured.efficiency, 1.0))


def _prediction(
    target: str,
    precision: str,
    weights: int,
    state: int,
    memory: int,
    fits: bool,
    bandwidth: float,
    seconds: float | None,
    rate: float | None,
) -> Prediction:
    return Prediction(
        target=target,
        precision=precision,
        weights=weights,
        state=state,
        memory=memory,
        fits=fits,
        floor=(weights + 2 * state) / bandwidth,
        seconds=seconds,
        margin=None if rate is None or seconds is None else 1 / (rate * seconds),
    )


def choose(predictions: Sequence[Prediction]) -> tuple[Prediction | None, str]:
    """What to take, and why: the most exact precision with a comfortable margin, else the fastest that keeps the rate.

    Precisions are as exact as their weights are large. Without a rate the fastest is taken. `tensorrt`, which was not
    measured, is never the answer.
    """
    if all(p.seconds is None for p in predictions):
        return None, "how long a step takes there is not known; on the device itself, --device here measures it"
    known = [p for p in predictions if p.fits and p.seconds is not None]
    if not known:
        return None, "nothing that was measured fits into its memory"
    fastest = min(known, key=lambda p: p.seconds or 0.0)
    if fastest.margin is None:
        return fastest, "the fastest that fits; give --rate to choose by what a control loop needs"
    comfortable = [p for p in known if p.margin is not None and p.margin >= COMFORTABLE]
    if comfortable:
        exact = max(comfortable, key=lambda p: (p.weights, -(p.seconds or 0.0)))
        return exact, f"the most exact whose step takes at most 1/{COMFORTABLE:g} of the period"
    if fastest.margin >= 1:
        return fastest, f"the fastest; none takes at most 1/{COMFORTABLE:g} of the period, so measure it there"
    return None, f"none keeps the rate: the fastest, {fastest.target} at {fastest.precision}, is too slow"
