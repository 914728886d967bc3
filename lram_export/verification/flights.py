"""Last night's flight once more: does a bundle choose the actions that were recorded, to the bit?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.bundle import Bundle
from lram_export.episodes.flights import check_flown
from lram_export.errors import LramError
from lram_export.flight.place import here
from lram_export.flight.reader import Flight
from lram_export.flight.steps import FlightStep
from lram_export.flight.stretches import to_take, why_none
from lram_export.progress import SILENT, Progress
from lram_export.runtimes import Runtime, load_runtime
from lram_export.spec.tensors import StepSpec
from lram_export.system.machine import suitable_threads


@dataclass(frozen=True)
class Replay:
    """A flight, taken again by one target of a bundle.

    Attributes:
        target: that took it.
        steps: that were taken.
        different: whose actions are not those that were recorded, to the bit.
        own: steps that this very artifact took, with this software on a processor of this kind; ``own_different``: of
            these, whose actions are others, which must not be.
        first: the number, in the loop, of the first of them; None: there is none.
        largest: the largest difference between two numbers of an action.
        flown: what flew, and on what, in words.
    """

    target: str
    steps: int
    different: int
    first: int | None
    largest: float
    own: int
    own_different: int
    flown: str

    @property
    def same(self) -> bool:
        """Whether this very artifact took every step, with this software on a processor of this kind."""
        return self.own == self.steps

    @property
    def passed(self) -> bool:
        """False where an action differs that must not."""
        return not self.own_different

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "target": self.target,
            "steps": self.steps,
            "different": self.different,
            "first_different": self.first,
            "largest_difference": self.largest,
            "same_artifact_and_place": self.own,
            "different_there": self.own_different,
            "passed": self.passed,
        }


Watch = Callable[[FlightStep, Sequence[NDArray[Any]]], None]
"""Is shown every step, and all outputs of the target that took it again."""


def replay_flight(
    bundle: Bundle, flight: Flight, targets: Iterable[str], *, threads: int | None, progress: Progress = SILENT
) -> list[Replay]:
    """Take a flight again on targets of a bundle, from the start of each episode on; one in memory at a time.

    Args:
        bundle: of the weights that flew.
        flight: what was recorded.
        targets: of the bundle.
        threads: for the runtimes; None: what flew had.
        progress: told about every step.

    Raises:
        LramError: another policy flew, or nothing can be taken again.
    """
    check_takes(bundle, flight)
    return [_replay(bundle, flight, target, threads, progress, _nobody) for target in targets]


def watch_replay(
    bundle: Bundle, flight: Flight, target: str, watch: Watch, *, threads: int | None, progress: Progress = SILENT
) -> Replay:
    """The same on one target, and show every step to ``watch``."""
    check_takes(bundle, flight)
    return _replay(bundle, flight, target, threads, progress, watch)


def check_takes(bundle: Bundle, flight: Flight) -> None:
    """Raise LramError unless a bundle can take something of a flight again: what was flown with its weights."""
    check_flown(flight, bundle.manifest.spec.with_batch(flight.header.spec.batch_size))
    weights = bundle.manifest.source["sha256"]
    if next(to_take(flight, weights), None) is None:
        others = sorted({header.weights[:12] or "unknown" for header in flight.headers if header.weights != weights})
        if others:
            raise LramError(
                f"{flight.path}: flown with other weights, {', '.join(others)}, than {bundle.path} has, {weights[:12]}"
            )
        raise LramError(f"{flight.path}: no step to take again: {why_none(flight)}")


def _replay(
    bundle: Bundle, flight: Flight, target: str, threads: int | None, progress: Progress, watch: Watch
) -> Replay:
    manifest, digest, place = bundle.manifest, bundle.artifact_digest(target), here(target)
    spec, first_header = flight.header.spec, flight.header
    cores = threads or first_header.threads or suitable_threads(manifest.parameters, spec.batch_size)
    runtime = load_runtime(target, bundle.load_artifact(target, spec.batch_size), cores)
    steps, different, first, largest, own, own_different = 0, 0, None, 0.0, 0, 0
    flown: dict[str, None] = {}
    try:
        with progress.stage(f"replaying {flight.path.name} on {target}", flight.count) as advance:
            for taken in to_take(flight, manifest.source["sha256"]):
                step, header = taken.step, taken.header
                if taken.starts:
                    runtime.reset()
                outputs = _step(runtime, spec, step)
                watch(step, outputs)
                is_own = header.digest == digest and header.place == place
                difference = _difference(spec, step, outputs)
                if difference is not None:
                    different, largest, own_different = different + 1, max(largest, difference), own_different + is_own
                    first = step.step if first is None else first
                steps, own = steps + 1, own + is_own
                flown[f"{header.bundle} on {header.target} ({header.place.software}), {header.place.machine}"] = None
                advance(1)
    finally:
        runtime.close()
    return Replay(target, steps, different, first, largest, own, own_different, "; ".join(flown))


def _step(runtime: Runtime, spec: StepSpec, step: FlightStep) -> Sequence[NDArray[Any]]:
    return tuple(runtime.step(*[step.inputs[tensor.name] for tensor in spec.inputs]))


def _difference(spec: StepSpec, step: FlightStep, outputs: Sequence[NDArray[Any]]) -> float | None:
    """How far actions are from those recorded, before anything held them back; None: the same to the bit."""
    largest = None
    for tensor, found in zip(spec.outputs, outputs, strict=True):
        recorded = step.chosen.get(tensor.name, step.outputs.get(tensor.name))
        if recorded is None or recorded.tobytes() == np.ascontiguousarray(found).tobytes():
            continue
        gap = float(np.abs(recorded.astype(np.float64) - found).max())
        largest = gap if largest is None else max(largest, gap)
    return largest


def _nobody(step: FlightStep, outputs: Sequence[NDArray[Any]]) -> None:
    pass
