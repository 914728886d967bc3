"""What other processes run: a module that costs nothing to import."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lram_export import Policy


def act(policy: Policy, observations: NDArray[np.float32]) -> tuple[list[float], list[NDArray[np.generic]]]:
    """Whether an episode starts, row by row, and the actions of steps one after the other."""
    fresh = policy.state()["is_first"].tolist()
    return fresh, [np.asarray(policy.act(observation)) for observation in observations]
