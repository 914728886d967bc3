"""What is done before there are motors: the first steps of a process take many times as long as those that follow."""

from __future__ import annotations

import numpy as np

from lram_export.policy import Policy, observations_of

STEPS = 20


def warm_up(policy: Policy, steps: int = STEPS) -> None:
    """Step over observations of zeros, and leave no trace of it: every row is at the start of an episode, as before.

    Raises:
        LramError: the policy cannot be stepped.
    """
    rows = policy.spec.batch_size
    zeros = {t.name: np.zeros((steps, *t.shape), t.dtype) for t in observations_of(policy.spec)}
    policy.prime(zeros, np.zeros((steps, rows)) if policy.spec.input("reward") is not None else None)
    policy.reset()
