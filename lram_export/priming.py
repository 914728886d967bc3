"""A history that a policy is run through: what every step of it is told, all of it checked before the first."""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import ArrayLike

from lram_export.arrays import numbers
from lram_export.conditioning import Conditioning, Floats
from lram_export.runtimes.protocol import check_magnitude
from lram_export.spec.tensors import StepSpec


def told_over(
    conditioning: Conditioning, spec: StepSpec, rewards: ArrayLike | None, steps: int, is_first: Floats
) -> list[dict[str, Floats]]:
    """The inputs of consecutive steps beside their observations.

    Args:
        conditioning: what the policy is told; as it is afterwards, too.
        spec: names and limits.
        rewards: (N, B), or (N,) for one row: at every step that of the one before; None: there are none.
        steps: N.
        is_first: (B,) of the first step.

    Raises:
        ValueError: naming the step, where :meth:`Conditioning.inputs` or the step itself would refuse its own.
    """
    given = None if rewards is None else _rewards(rewards, steps, spec.batch_size)
    trial = copy.copy(conditioning)  # its arrays are replaced by a step, and never written to
    found = []
    for step in range(steps):
        try:
            told = trial.inputs(None if given is None else given[step], is_first)
            for name, values in told.items():
                check_magnitude(name, values, spec.limits.get(name))
        except ValueError as error:
            name, _, what = str(error).partition(": ")
            raise ValueError(f"{'rewards' if name == 'reward' else name}: step {step}: {what}") from None
        trial.commit(told)
        found.append(told)
        is_first = np.zeros_like(is_first)
    return found


def _rewards(rewards: ArrayLike, steps: int, rows: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """(N, B)."""
    values = numbers("rewards", rewards, missing=True)
    if values.shape not in (((steps,), (steps, 1)) if rows == 1 else ((steps, rows),)):
        expected = f"({steps},) or ({steps}, 1)" if rows == 1 else f"({steps}, {rows})"
        raise ValueError(f"rewards: expected shape {expected}, got shape {values.shape}")
    return values.reshape(steps, rows)
