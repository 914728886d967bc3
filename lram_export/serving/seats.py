"""A seat: one row of a fleet as the runtime of a policy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lram_export.runtimes.base import BaseRuntime
from lram_export.runtimes.protocol import State, StepInputs, StepOutput
from lram_export.serving.batching import Batcher
from lram_export.spec.tensors import InitialTensors


class Seat(BaseRuntime):
    """A row for one robot after the other; whoever sits down begins with a reset, as every policy does.

    A step blocks until the batcher has made it. The batcher's own thread cannot wait for itself: it makes the two
    halves of a policy's step (:meth:`lram_export.policy.Policy.begin`), and the row's step in between.
    """

    checked_by_engine = True  # outputs; inputs are checked here, before other robots' rows are in the same step

    def __init__(self, batcher: Batcher, row: int, initial: InitialTensors) -> None:
        spec = batcher.rows.spec
        super().__init__(spec, initial, StepInputs(spec))
        self.row, self._batcher = row, batcher

    def _step(self) -> StepOutput:
        return StepOutput(self.spec, self._batcher.step(self.row, self._inputs.arrays))

    def _save(self) -> State:
        return self._batcher.do(lambda: self._batcher.rows.state(self.row))

    def _load(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        self._batcher.do(lambda: self._batcher.rows.load_state(self.row, state))

    def _restart(self, rows: list[int]) -> None:
        self._batcher.do(lambda: self._batcher.rows.reset(self.row))

    def _free(self) -> None:
        """Nothing: the next robot's policy resets the row."""
