"""What a contender's process does: load, compare with the reference, step while its clock runs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lram_export.checkpoints.random import preset_config
from lram_export.episodes.reference import load_reference
from lram_export.errors import LramError
from lram_export.model.specification import step_spec
from lram_export.spec.parity import ParityMeter, ParityResult
from lram_export.spec.tasks import resolve_task
from lram_export.system.machine import peak_memory
from lram_export.verification.verify import replay
from peers import NAMES, ours, peer
from peers.building import TASK
from peers.protocol import initial_state

INT8_ERROR = 0.1
"""Relative logit error against the float32 reference beyond which nobody's int8 still computes this model."""


@dataclass(frozen=True)
class Contender:
    """What takes turns: a peer or one of our targets, at a precision; ``path`` is what was built for it."""

    name: str
    size: str
    precision: str
    path: Path

    @property
    def title(self) -> str:
        """In tables and the chart."""
        return title(self.name)


@dataclass(frozen=True)
class Report:
    """What a contender's process knows besides times; errors are those of logits against the float32 reference."""

    logit_error: float
    relative_error: float
    actions: int
    actions_different: int
    load_seconds: float
    peak_memory: int | None


class Stepper:
    """Ready to step as soon as it is made; raises LramError if it computes something else."""

    def __init__(self, contender: Contender, reference: Path, threads: int) -> None:
        spec = step_spec(preset_config(contender.size), resolve_task(TASK))
        self._spec = spec
        start = time.perf_counter()
        self._session: Any
        if contender.name in NAMES:
            self._session = peer(contender.name).load(contender.path, spec, contender.precision, threads)
        else:
            self._session = ours.load(contender.path, contender.name, threads)
        self._load_seconds = time.perf_counter() - start
        recorded = load_reference(reference, spec)
        meter = ParityMeter(spec)
        replay(self._session, recorded, meter)
        self._found = meter.result()
        check(self._found, contender.precision)
        going_on = [tensor.name != "is_first" for tensor in spec.inputs]
        steps = [
            [array if keep else np.zeros_like(array) for array, keep in zip(inputs, going_on, strict=True)]
            for inputs in recorded.inputs
        ]
        self._inputs: Iterator[list[Any]] = itertools.cycle(steps)

    def window(self, steps: int, seconds: float) -> list[float]:
        """Seconds of each timed step, fewer if they take longer than ``seconds`` together."""
        for _ in range(max(3, steps // 10)):  # caches and threads, after others' turns
            self._step()
        found: list[float] = []
        while len(found) < steps and sum(found) < seconds:
            found.append(self._step())
        return found

    def _step(self) -> float:
        inputs, step = next(self._inputs), self._session.step
        start = time.perf_counter()
        step(*inputs)
        return time.perf_counter() - start

    def finish(self) -> Report:
        """Raises LramError unless every state has moved from where an episode starts, and is finite."""
        state = self._session.state()
        for spec, start in zip(self._spec.states, initial_state(self._spec), strict=True):
            if not np.isfinite(state[spec.name]).all() or np.array_equal(state[spec.name], start):
                raise LramError(f"{spec.name}: the state did not advance or is not finite; times are void")
        found = self._found
        return Report(
            found.max_logit_error,
            found.relative_error or 0.0,
            found.actions,
            found.actions_different,
            self._load_seconds,
            peak_memory(),
        )


def check(found: ParityResult, precision: str) -> None:
    """Raise LramError unless steps at a precision are those of the float32 reference, as far as it allows."""
    if precision == "fp32" and not found.passed:
        raise LramError(f"computes something else: {found.failures()[0]}")
    error = found.relative_error
    if precision != "fp32" and not (error is not None and error <= INT8_ERROR):
        raise LramError(f"computes something else: relative logit error {error:.2g}, allowed {INT8_ERROR}")


def title(name: str) -> str:
    """Of a contender, by its name."""
    return peer(name).title if name in NAMES else name
