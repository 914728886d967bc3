"""Does the error of a target grow with the steps of an episode? Told for every environment by itself.

Environments follow each other in a recording, so early and late steps of the whole would compare different ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lram_export.episodes.steps import RecordedSteps, StepSequence

PARTS = 10
UNNAMED = "all steps"


def drift(errors: NDArray[np.float64], steps: StepSequence) -> dict[str, list[float]]:
    """Largest error in each tenth of an episode, from its start to the end of the longest, by environment.

    Args:
        errors: (N, B), of every step and row.
        steps: what was run. Steps that do not say of which environment they are count as one, :data:`UNNAMED`.

    Returns:
        Per environment up to ten numbers, in the order of the steps; stretches without a step are left out.
    """
    names: Sequence[str] = (UNNAMED,)
    environment = np.zeros(len(steps), np.int32)
    if isinstance(steps, RecordedSteps) and steps.environments:
        names, environment = steps.environments, steps.environment
    position = steps_since_start(steps["is_first"])
    found = {}
    for number, name in enumerate(names):
        here = environment == number
        if here.any():
            at, error = position[here].reshape(-1), errors[here].reshape(-1)
            part = at * PARTS // (int(at.max()) + 1)
            found[name] = [float(error[part == p].max()) for p in range(PARTS) if (part == p).any()]
    return found


def steps_since_start(is_first: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N, B): how many steps ago the row's episode started."""
    step = np.arange(len(is_first))[:, None]
    position: NDArray[np.int64] = step - np.maximum.accumulate(np.where(is_first > 0, step, 0), axis=0)
    return position
