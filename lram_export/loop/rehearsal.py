"""What stands in for a robot: recorded observations and, where the policy wants some, rewards; no motors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.bundle import Bundle
from lram_export.observations import observations_of
from lram_export.policy import Policy
from lram_export.verification.verify import load_bundle_reference

STEPS = 500
"""How many, unless told another number."""


class Rehearsal:
    """A :class:`~lram_export.loop.robot.Robot` that plays a recording again and again."""

    def __init__(self, observations: list[dict[str, NDArray[Any]]], rewards: NDArray[np.float32] | None) -> None:
        """``rewards``: what each step brought, (steps,) or (steps, B); None where the policy is given none."""
        self._observations, self._rewards = observations, rewards
        self._step = 0
        self._reward: Any = None

    @classmethod
    def of_bundle(cls, path: Path, policy: Policy) -> Rehearsal:
        """The steps that a bundle was verified by."""
        task, recorded = policy.task, load_bundle_reference(Bundle.open(path)).inputs
        names = [tensor.name for tensor in observations_of(policy.spec)]
        observations = [{name: recorded[name][i] for name in names} for i in range(len(recorded))]
        if task is None or task.reward_feedback != "observed":
            return cls(observations, None)
        # recorded as the token of the step after
        rewards = np.asarray(recorded["reward"] * task.reward_scale, np.float32)
        return cls(observations, np.roll(rewards, -1, axis=0))

    @classmethod
    def of_file(cls, path: Path, policy: Policy) -> Rehearsal:
        """The file that `lram-export run` takes; raises LramError where it is none."""
        from lram_export.rollouts.observations import read_recording

        recording = read_recording(path, policy.spec)
        observations = [{n: v[i] for n, v in recording.observations.items()} for i in range(len(recording))]
        return cls(observations, recording.rewards)

    def reset(self) -> dict[str, NDArray[Any]]:
        """Begin at the first step."""
        self._step = 0
        return self.observe()

    def observe(self) -> dict[str, NDArray[Any]]:
        """The next step's observation."""
        at = self._step % len(self._observations)
        self._step += 1
        self._reward = None if self._rewards is None else self._rewards[at]
        return self._observations[at]

    def act(self, action: object) -> Any:
        """Actions go nowhere. A step's reward comes once, with the first of them."""
        reward, self._reward = self._reward, None
        return reward

    def close(self) -> None:
        """No motors to stop."""
