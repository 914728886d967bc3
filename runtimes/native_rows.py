"""Rows of the target `native`: one model and one state for many robots, of which a step takes those that have asked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export import _native
from lram_export.bundle.artifact import LoadedArtifact
from lram_export.errors import LramError, StepError
from lram_export.runtimes.native import open_model
from lram_export.runtimes.protocol import State

Arrays = tuple[NDArray[Any], ...]
LOST = "state: row 0 was lost in an earlier step; reset it, load one, or start an episode"
"""As the engine says it of a policy of one row."""


class NativeRows:
    """Rows that know nothing of one another; what a row comes to is, to the bit, what it is in a runtime of its own.

    All inputs are checked before they come here. A step that fails all the same changes nothing, and its rows are
    stepped one by one, so that the others do not notice. But of a model of ours one whose logits are not finite is
    made: then its rows have no actions, and are lost. It takes a state that somebody made up, so rows that go on from
    a loaded state are stepped by themselves until their next episode.
    """

    together = True

    def __init__(self, model: _native.Model, artifact: LoadedArtifact) -> None:
        spec = artifact.spec
        self.spec, self.size = spec.with_batch(1), spec.batch_size
        self._model: Any = model
        self._state: Any = _native.State(model, self.size)
        self._inputs = [np.zeros(tensor.shape, tensor.dtype) for tensor in spec.inputs]
        self._outputs = [np.zeros(tensor.shape, tensor.dtype) for tensor in spec.outputs]
        by_name = dict(zip((tensor.name for tensor in spec.inputs), self._inputs, strict=True))
        names = [name for name, _, _ in model.inputs]
        self._state.bind([by_name[name] for name in names], self._outputs, [spec.limits.get(name) for name in names])
        self._loses = artifact.task is not None
        self._lost: set[int] = set()
        self._loaded: set[int] = set()

    def step(self, rows: Sequence[int], inputs: Sequence[Arrays]) -> list[Arrays | Exception]:
        """One step of some rows, with inputs in the order of the specification, (1, ...) each: for each its outputs,
        (1, ...) each, or why there are none."""
        given = dict(zip(rows, inputs, strict=True))
        found: dict[int, Arrays | Exception] = {}
        starting = {row for row in rows if given[row][-1][0] != 0}  # is_first: nothing is left of what was
        for row in self._lost.intersection(rows) - starting:
            found[row] = StepError(LOST)
        alone = self._loaded - starting
        steady = sorted(row for row in rows if row not in found and row not in alone)
        for group in (steady, *([row] for row in rows if row in alone and row not in found)):
            found.update(self._step(group, given))
        for row in starting:
            if not isinstance(found[row], Exception):  # one that is refused has begun nothing
                self._lost.discard(row)
                self._loaded.discard(row)
        return [found[row] for row in rows]

    def _step(self, rows: list[int], given: Mapping[int, Arrays]) -> dict[int, Arrays | Exception]:
        """The same of rows that are one step of the engine, in ascending order."""
        if not rows:
            return {}
        for place, row in enumerate(rows):
            for array, values in zip(self._inputs, given[row], strict=True):
                array[place] = values[0]
        try:
            self._state.step_rows(rows)
        except (OverflowError, ValueError) as error:
            failed = _of_one_row(error)
            if self._loses and str(error).startswith("logits:"):
                self._lost.update(rows)
                return dict.fromkeys(rows, failed)
            if len(rows) == 1:
                return {rows[0]: failed}
            return {row: outcome for row in rows for outcome in self._step([row], given).values()}
        return {
            row: tuple(array[place : place + 1].copy() for array in self._outputs) for place, row in enumerate(rows)
        }

    def settle(self) -> None:
        """Do what the last step left for the time after its answers."""
        self._state.settle()

    def reset(self, row: int) -> None:
        """Fill the state of a row with initial values, whatever it held."""
        self._state.reset([row])
        self._lost.discard(row)
        self._loaded.discard(row)

    def state(self, row: int) -> State:
        """A copy of the state of a row; raises StepError where it was lost."""
        if row in self._lost:
            raise StepError(LOST)
        values = np.empty(sum(tensor.size for tensor in self.spec.states), np.float32)
        try:
            self._state.save_rows([row], values)
        except OverflowError as error:
            raise _of_one_row(error) from None
        found, start = {}, 0
        for tensor in self.spec.states:
            found[tensor.name] = values[start : start + tensor.size].reshape(tensor.shape)
            start += tensor.size
        return found

    def load_state(self, row: int, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Continue a row from a state that was checked."""
        flat = [state[tensor.name].reshape(-1) for tensor in self.spec.states]
        self._state.load_rows([row], np.concatenate([np.empty(0, np.float32), *flat]))
        self._lost.discard(row)
        self._loaded.add(row)

    def close(self) -> None:
        """Free everything."""
        self._state = self._model = None


def _of_one_row(error: Exception) -> StepError:
    """What the engine says of a row, as a policy of one row has it."""
    return StepError(re.sub(r"\brow \d+", "row 0", str(error)))


def load_rows(artifact: LoadedArtifact, threads: int, spin: bool) -> NativeRows:
    """As many rows as the artifact is described with; raises as :func:`lram_export.runtimes.native.load`."""
    model = open_model(artifact, threads, spin)
    try:
        return NativeRows(model, artifact)
    except MemoryError as error:
        raise LramError(str(error)) from None
