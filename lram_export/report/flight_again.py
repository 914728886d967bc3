"""A flight taken again for its page: on the target that flew, and beside the reference, step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.bundle import Bundle
from lram_export.errors import describe
from lram_export.flight.header import FlightHeader
from lram_export.flight.reader import Flight
from lram_export.flight.steps import FlightStep
from lram_export.flight.stretches import to_take, why_none
from lram_export.progress import SILENT, Progress
from lram_export.runtimes import Runtime, load_runtime, unavailable
from lram_export.spec.parity import FLOAT32, ParityMeter, ParityResult, Tolerance
from lram_export.spec.tensors import StepSpec
from lram_export.system.machine import suitable_threads
from lram_export.verification.flights import Replay, replay_flight, watch_replay
from lram_export.verification.verify import load_bundle_reference

if TYPE_CHECKING:
    from lram_export.lowering import LoweredPolicy

Floats = NDArray[np.float64]
Outputs = Sequence[NDArray[Any]]
REFERENCE = "pytorch"


@dataclass(frozen=True)
class Parting:
    """A target beside the reference over N steps of a flight.

    Attributes:
        target: that flew; ``reference``: what it is beside, in words.
        numbers: of the steps, in the loop, (N,); ``times``: seconds since the loop began.
        errors: of the outputs of a step, as the tolerance takes them, (N,).
        different: whether another action was chosen, (N,).
        result: what it comes to.
    """

    target: str
    reference: str
    numbers: NDArray[np.int64]
    times: Floats
    errors: Floats
    different: NDArray[np.bool_]
    result: ParityResult

    @property
    def tolerance(self) -> Tolerance:
        """What holds for the target."""
        return self.result.tolerance

    @property
    def worst(self) -> int:
        """Where in the arrays the error is largest."""
        return int(self.errors.argmax())

    @property
    def first(self) -> int | None:
        """Where in the arrays they part first: another action, or an error beyond the tolerance; None: nowhere."""
        parted = np.flatnonzero(self.different | ~(self.errors <= self.tolerance.logit))
        return int(parted[0]) if len(parted) else None


@dataclass(frozen=True)
class Again:
    """A flight taken again, or why it was not.

    Attributes:
        replay: on the target; None where it was not.
        whole: whether all steps were taken that can be.
        instead_of: the target that flew, where that is another.
        parting: beside the reference; None where there was none.
        why_not: in words, where something is missing.
    """

    replay: Replay | None = None
    whole: bool = True
    instead_of: str = ""
    parting: Parting | None = None
    why_not: str = ""


def take_again(
    bundle: Bundle,
    flight: Flight,
    most: int,
    policy: Callable[[], LoweredPolicy] | None = None,
    progress: Progress = SILENT,
) -> Again:
    """Take the first steps of a flight again; what fails is told, not raised.

    Args:
        bundle: of the weights that flew.
        flight: what was recorded.
        most: how many steps; 0: none.
        policy: makes the oracle of a checkpoint; default: the bundle's target `pytorch`, if that is here.
        progress: told about every step.
    """
    if not most:
        return Again(why_not="not asked for")
    own = _own(bundle, flight)
    part = _Part.of(flight, own)
    numbers = [taken.step.step for taken in islice(to_take(part), most + 1)]
    if not numbers:
        return Again(why_not=f"{why_none(flight)}, so nobody knows the memory the policy had")
    part = dataclasses.replace(part, last=numbers[:most][-1], count=min(len(numbers), most))
    flown = own[0].target
    candidates = [flown, *(target for target in bundle.targets if target != flown)]
    usable = [target for target in candidates if target in bundle.targets and unavailable(target) is None]
    if not usable:
        return Again(why_not="no target of this bundle can run here")
    try:
        replay, parting = _taken(bundle, part, usable[0], policy, progress)
    except Exception as error:  # toolkits are foreign code, and the page goes on without
        return Again(why_not=describe(error))
    why_not = "" if parting is not None else f"there is no --checkpoint, and no target {REFERENCE} that runs here"
    if parting is None and usable[0] == REFERENCE:
        why_not = f"{REFERENCE} itself flew"
    return Again(replay, len(numbers) <= most, "" if usable[0] == flown else flown, parting, why_not)


def _own(bundle: Bundle, flight: Flight) -> list[FlightHeader]:
    """What flew of a bundle: one of its artifacts; or, if none did, all of its weights."""
    digests = {bundle.artifact_digest(target): target for target in bundle.targets}
    target = next((digests[header.digest] for header in flight.headers if header.digest in digests), None)
    if target is not None:
        return [header for header in flight.headers if digests.get(header.digest) == target]
    return [header for header in flight.headers if header.weights == bundle.manifest.source["sha256"]]


@dataclass(frozen=True)
class _Part(Flight):
    """The steps of a flight that some of its bundles flew, up to a number in the loop."""

    bundles: frozenset[int] = frozenset()
    last: int | None = None

    @staticmethod
    def of(flight: Flight, headers: Sequence[FlightHeader]) -> _Part:
        """What these flew."""
        own = {field.name: getattr(flight, field.name) for field in dataclasses.fields(Flight)}
        return _Part(**own, bundles=frozenset(header.number for header in headers))

    def steps(self) -> Iterator[FlightStep]:
        """See :class:`Flight`."""
        for step in super().steps():
            if self.last is not None and step.step > self.last:
                return
            if step.bundle in self.bundles:
                yield step


def _taken(
    bundle: Bundle, flight: Flight, target: str, policy: Callable[[], LoweredPolicy] | None, progress: Progress
) -> tuple[Replay, Parting | None]:
    spec = flight.header.spec
    with _reference(bundle, spec.batch_size, target, policy) as (reference, name):
        if reference is None:
            return replay_flight(bundle, flight, [target], threads=None, progress=progress)[0], None
        beside = _Beside(bundle, spec, target, reference)
        replay = watch_replay(bundle, flight, target, beside.add, threads=None, progress=progress)
        return replay, beside.parting(name)


@contextmanager
def _reference(
    bundle: Bundle, rows: int, target: str, policy: Callable[[], LoweredPolicy] | None
) -> Iterator[tuple[Runtime | None, str]]:
    """What a target is held to, and its name; None: there is nothing but the target itself."""
    if policy is not None:
        from lram_export.model.reference import oracle_threads

        oracle = policy()
        with closing(oracle.reference(rows)) as runtime, oracle_threads(oracle.parameters):
            yield runtime, "the PyTorch model of the checkpoint"
    elif target == REFERENCE or REFERENCE not in bundle.targets or unavailable(REFERENCE) is not None:
        yield None, ""
    else:
        threads = suitable_threads(bundle.manifest.parameters, rows)
        with closing(load_runtime(REFERENCE, bundle.load_artifact(REFERENCE, rows), threads)) as runtime:
            yield runtime, f"the bundle's own target {REFERENCE}"


class _Beside:
    """Lets the reference take each step that a target took, and keeps how they differ."""

    def __init__(self, bundle: Bundle, spec: StepSpec, target: str, reference: Runtime) -> None:
        entry = bundle.artifact(target)
        state_format = FLOAT32 if entry.parity is None else entry.parity.state_format
        recorded = load_bundle_reference(bundle).outputs
        self._meter = ParityMeter(spec, entry.precision, entry.activations, state_format, recorded)
        self._spec, self._target, self._reference = spec, target, reference
        self._numbers: list[int] = []
        self._times: list[float] = []
        self._different: list[bool] = []

    def add(self, step: FlightStep, outputs: Outputs) -> None:
        """Of every step, in order; the first starts an episode, and so the reference's too."""
        spec = self._spec
        expected = tuple(self._reference.step(*[step.inputs[tensor.name] for tensor in spec.inputs]))
        self._meter.add_step(expected, outputs)
        self._different.append(any(not np.array_equal(expected[i], outputs[i]) for i in spec.chosen))
        self._numbers.append(step.step)
        self._times.append(step.time)

    def parting(self, reference: str) -> Parting:
        """How they differ."""
        meter, result = self._meter, self._meter.result()
        return Parting(
            target=self._target,
            reference=reference,
            numbers=np.array(self._numbers, np.int64),
            times=np.array(self._times),
            errors=meter.relative_errors if result.tolerance.relative else meter.errors.max(axis=1),
            different=np.array(self._different),
            result=result,
        )
