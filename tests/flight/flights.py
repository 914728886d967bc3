"""Flights for tests: real loops over recorded observations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lram_export import Policy
from lram_export.flight.reader import Flight, read_flight
from lram_export.flight.recorder import FlightRecorder
from lram_export.interpolation import Between
from lram_export.loop.control import Loop, LoopOptions
from lram_export.loop.rehearsal import Rehearsal

FAST = 5000.0
"""Hz: no test waits for a robot."""


class Shaky(Rehearsal):
    """A rehearsal some of whose readings fail, and whose second episode begins in the middle.

    Attributes:
        failing: number of a reading -> what comes in its place.
        beginning: numbers of readings with which an episode begins.
    """

    failing: dict[int, Any]
    beginning: tuple[int, ...] = ()
    reads = 0

    def observe(self) -> Any:
        self.reads += 1
        seen = super().observe()
        failing = getattr(self, "failing", {})
        found = failing.get(self.reads, seen)
        if isinstance(found, BaseException):
            raise found
        return found

    def event(self) -> str | None:
        return "new episode" if self.reads + 1 in self.beginning else None


def fly(policy: Policy, bundle: Path, path: Path, steps: int = 60, **said: Any) -> tuple[Flight, Loop]:
    """Record a flight over the bundle's own observations: the third to the fifth fails, a second episode begins."""
    robot = Shaky.of_bundle(bundle, policy)
    assert isinstance(robot, Shaky)
    name = policy.spec.inputs[0].name
    seen = np.array(robot.observe()[name])
    if seen.dtype.kind == "f":
        broken = seen.copy()
        broken.flat[1] = np.nan
        robot.failing = {4: None, 5: {name: broken}, 6: OSError("bus is busy")}
    robot.reads, robot.beginning = 0, (said.pop("beginning", 30),)
    recorder = FlightRecorder(path)
    options = LoopOptions(**{"rate": FAST, "between": Between(), "steps": steps, **said})
    loop = Loop(policy, robot, options, recorder=recorder)
    loop.run()
    recorder.close()
    assert not recorder.failure and not recorder.dropped
    return read_flight(path), loop
