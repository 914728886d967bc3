"""Recordings of what a policy saw: the inputs of its steps, from the start of every episode (``steps.npz``).

Time comes first, then the batch: ``observation``, ``return_to_go``, ``reward`` and ``is_first`` exactly as
the step graph took them, scaled. An episode starts with ``is_first`` and the initial state, so whoever runs
the steps again in order has the recurrent state of every step, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from lram_export.episodes.steps import StepSequence
from lram_export.errors import LramError
from lram_export.policy import Policy
from lram_export.progress import Advance
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

    def recorded(self) -> StepSequence:
        """All steps since this was last asked; raises LramError if there are none."""
        if not self._steps:
            raise LramError("nothing recorded: no step was taken")
        steps, self._steps = self._steps, []
        columns = [np.stack(column) for column in zip(*steps, strict=True)]
        return StepSequence({t.name: values for t, values in zip(self.spec.inputs, columns, strict=True)})

    def settle(self) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        self._runtime.settle()

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
