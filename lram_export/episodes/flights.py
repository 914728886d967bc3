"""Steps of a flight, as other recordings have them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.errors import LramError
from lram_export.flight.reader import Flight
from lram_export.flight.stretches import to_take, why_none
from lram_export.spec.tensors import StepSpec, TensorSpec


def check_flown(flight: Flight, spec: StepSpec) -> None:
    """Raise LramError, naming the first input or output that differs, unless a policy with this step flew."""
    flown = flight.header.spec
    for kind, own, other in (("inputs", spec.inputs, flown.inputs), ("outputs", spec.outputs, flown.outputs)):
        ours, theirs = [_shown(t) for t in own], [_shown(t) for t in other]
        if ours != theirs:
            odd = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), (ours[-1], theirs[-1]))
            raise LramError(f"{flight.path}: {kind}: expected {odd[0]}, as the bundle has, got {odd[1]}")


def columns(flight: Flight, spec: StepSpec) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32] | None]:
    """What the steps took that can be taken again, name -> (N, B, ...); and the rewards that the policy was given.

    These are what each step brought, (N, B), in the environment's units; None: it was given none.

    Raises:
        LramError: there are no such steps, or another step was flown.
    """
    check_flown(flight, spec)
    values = {tensor.name: np.empty((flight.count, *tensor.shape), tensor.dtype) for tensor in spec.inputs}
    given: NDArray[np.float64] | None = None
    steps = 0
    for taken in to_take(flight):
        for name, column in values.items():
            column[steps] = taken.step.inputs[name]
        if taken.step.reward is not None:
            given = np.zeros((flight.count, spec.batch_size)) if given is None else given
            given[steps] = taken.step.reward
        steps += 1
    if not steps:
        raise LramError(f"{flight.path}: no step to take again: {why_none(flight)}")
    # an episode's first step ignores what it was given, whatever it is
    brought = None if given is None else np.nan_to_num(np.roll(given[:steps], -1, axis=0)).astype(np.float32)
    return {name: column[:steps] for name, column in values.items()}, brought


def _shown(tensor: TensorSpec) -> str:
    return f"{tensor.name} of {tensor.dtype} {tensor.shape}"
