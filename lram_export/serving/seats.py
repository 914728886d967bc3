"""A seat: one row of a fleet as the runtime of a policy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lram_export.runtimes.base import BaseRuntime
from lram_export.runtimes.protocol import State, StepInputs, StepOutput
from lram_export.serving.batching import Batcher
from lram_export.serving.rows import Arrays, Outcome
from lram_export.spec.tensors import InitialTensors


class Parked(BaseException):
    """A step that came as far as its inputs; nothing has changed. No error: it must pass through who catches those."""


class Seat(BaseRuntime):
    """A row for one robot after the other; whoever sits down begins with a reset, as every policy does.

    A step blocks until the batcher has made it. The batcher's own thread cannot wait for itself: for it, a policy takes
    each step twice. With ``parking`` it comes to :class:`Parked` with its checked inputs in ``inputs``, and changes
    nothing; when the row was stepped, the same call with ``outcome`` comes to its end.
    """

    checked_by_engine = True  # outputs; inputs are checked here, before other robots' rows are in the same step

    def __init__(self, batcher: Batcher, row: int, initial: InitialTensors) -> None:
        spec = batcher.rows.spec
        super().__init__(spec, initial, StepInputs(spec))
        self.row, self._batcher = row, batcher
        self.parking = False
        self.outcome: Outcome | None = None

    @property
    def inputs(self) -> Arrays:
        """Of the last step that was asked for, checked."""
        return self._inputs.arrays

    def _step(self) -> StepOutput:
        if self.parking:
            raise Parked
        outcome, self.outcome = self.outcome, None
        if outcome is None:
            outcome = self._batcher.step(self.row, self._inputs.arrays)
        if isinstance(outcome, Exception):
            raise outcome
        return StepOutput(self.spec, outcome)

    def _save(self) -> State:
        return self._batcher.do(lambda: self._batcher.rows.state(self.row))

    def _load(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        self._batcher.do(lambda: self._batcher.rows.load_state(self.row, state))

    def _restart(self, rows: list[int]) -> None:
        if self.outcome is not None:
            return  # the first time it came here, before the step whose outcome this is
        self._batcher.do(lambda: self._batcher.rows.reset(self.row))

    def _free(self) -> None:
        """Nothing: the next robot's policy resets the row."""
