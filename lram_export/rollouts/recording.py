"""Recordings of what a policy saw: the inputs of its steps, from the start of every episode (``steps.npz``).

Time comes first, then the batch: ``observation``, ``return_to_go``, ``reward`` and ``is_first`` exactly as
the step graph took them, scaled. An episode starts with ``is_first`` and the initial state, so whoever runs
the steps again in order has the recurrent state of every step, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lram_export.episodes.steps import RecordedSteps, StepSequence
from lram_export.errors import LramError, UsageError
from lram_export.policy import Policy
from lram_export.progress import SILENT, Advance, Progress
from lram_export.rollouts.observations import Recording, run_recording
from lram_export.runtimes.protocol import Runtime, State, StepOutput


class RecordingRuntime:
    """A runtime that keeps the inputs of every step; give it to a :class:`Policy` and run anything."""

    def __init__(self, runtime: Runtime) -> None:
        self.spec = runtime.spec
        self._runtime = runtime
        self._steps: list[tuple[NDArray[np.generic], ...]] = []

    def step(self, *inputs: NDArray[np.generic]) -> StepOutput:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        kept = tuple(values.copy() for values in inputs)
        output = self._runtime.step(*inputs)
        self._steps.append(kept)
        return output

    def __len__(self) -> int:
        return len(self._steps)

    def recorded(self) -> StepSequence:
        """All steps so far; raises LramError if there are none."""
        if not self._steps:
            raise LramError("nothing recorded: no step was taken")
        columns = [np.stack(column) for column in zip(*self._steps, strict=True)]
        return StepSequence({t.name: values for t, values in zip(self.spec.inputs, columns, strict=True)})

    def state(self) -> State:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        return self._runtime.state()

    def load_state(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Refused: what follows could not be run again from the recorded inputs alone."""
        raise LramError("a recording starts its episodes from the initial state: no state can be loaded into it")

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        self._runtime.reset(rows)

    def close(self) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        self._runtime.close()


def record_observations(policy: Policy, recording: Recording, advance: Advance = lambda amount: None) -> StepSequence:
    """The steps a policy takes over recorded observations, see
    :func:`~lram_export.rollouts.observations.run_recording`."""
    recorder = RecordingRuntime(policy.runtime)
    run_recording(Policy(recorder, policy.task), recording, advance)
    return recorder.recorded()


@dataclass(frozen=True)
class EpisodePlan:
    """Which episodes to play for a recording.

    ``environments`` are ``family/task``; ``target_return`` None: the task table's for each environment, else
    the policy's own; ``rewards`` False: the policy is given none, like a robot that has none.
    """

    environments: tuple[str, ...]
    episodes: int
    seed: int
    rewards: bool = True
    target_return: float | None = None


def record_episodes(policy: Policy, plan: EpisodePlan, progress: Progress = SILENT) -> RecordedSteps:
    """The steps a policy takes in simulated episodes, environment after environment, seed after seed.

    Raises:
        UsageError: an environment that does not exist, is not installed or does not fit; or a policy of a batch.
        EnvironmentFailure: an environment failed.
    """
    from lram_export.rollouts.environments.fitting import FittedEnvironment
    from lram_export.rollouts.evaluation import own_target_return, rollout

    if policy.spec.batch_size != 1:
        raise UsageError(f"--env: episodes need a bundle of batch 1, this one has batches of {policy.spec.batch_size}")
    recorder = RecordingRuntime(policy.runtime)
    watched = Policy(recorder, policy.task)
    lengths = []
    with ExitStack() as opened:
        environments = [
            opened.enter_context(FittedEnvironment.open(name, policy.spec, policy.task)) for name in plan.environments
        ]
        for environment in environments:
            own = own_target_return(environment.name, policy.task)
            aim = own if plan.target_return is None else plan.target_return
            before = len(recorder)
            with progress.stage(environment.name, plan.episodes) as advance:
                for seed in range(plan.seed, plan.seed + plan.episodes):
                    rollout(environment, watched, seed, aim, rewards=plan.rewards)
                    advance(1)
            lengths.append(len(recorder) - before)
    of = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return RecordedSteps(recorder.recorded().inputs, environment=of, environments=plan.environments)
