"""As many rows as are asked for, of an artifact that computes a fixed number of them: part after part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.artifact import LoadedArtifact
from lram_export.runtimes.base import BaseRuntime
from lram_export.runtimes.protocol import State, StepOutput


def in_parts(artifact: LoadedArtifact, make: Callable[[LoadedArtifact], BaseRuntime]) -> BaseRuntime:
    """The runtime of an artifact whose code is for the number of rows that it was exported for.

    Args:
        artifact: of any number of rows.
        make: the runtime of an artifact of as many rows as it was exported for; what it can share between several,
            such as weights, it should.
    """
    count = -(-artifact.spec.batch_size // artifact.exported_batch)
    if artifact.spec.batch_size == artifact.exported_batch:
        return make(artifact)
    parts: list[BaseRuntime] = []
    try:
        for _ in range(count):
            parts.append(make(artifact.as_exported()))
        return StackedRuntime(parts, artifact)
    except BaseException:
        for part in parts:
            part.close()
        raise


class StackedRuntime(BaseRuntime):
    """Several runtimes of one artifact as one: the rows of the first, then those of the next.

    Rows of the last one that nobody asked for start an episode at every step, with inputs of zeros.
    """

    def __init__(self, parts: Sequence[BaseRuntime], artifact: LoadedArtifact) -> None:
        self.in_place = parts[0].in_place
        super().__init__(artifact.spec, artifact.initial)
        rows, each = artifact.spec.batch_size, artifact.exported_batch
        self._parts = [(part, i * each, min((i + 1) * each, rows)) for i, part in enumerate(parts)]
        self._outputs = StepOutput.zeros(artifact.spec)
        parts[-1]._inputs.arrays[-1][:] = 1.0

    def _step(self) -> StepOutput:
        for part, start, stop in self._parts:
            for array, values in zip(part._inputs.arrays, self._inputs.arrays, strict=True):
                array[: stop - start] = values[start:stop]
            for result, values in zip(self._outputs, part._step(), strict=True):
                result[start:stop] = values[: stop - start]
        return self._outputs

    def _commit(self) -> None:
        for part, _, _ in self._parts:
            part._commit()

    def _save(self) -> State:
        saved = [(part._save(), stop - start) for part, start, stop in self._parts]
        return {t.name: np.concatenate([state[t.name][:rows] for state, rows in saved]) for t in self.spec.states}

    def _load(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        for part, start, stop in self._parts:
            whole = {name: values.copy() for name, values in part._initial.items()}
            for name, values in whole.items():
                values[: stop - start] = state[name][start:stop]
            part._load(whole)

    def _restart(self, rows: list[int]) -> None:
        for part, start, stop in self._parts:
            own = [row - start for row in rows if start <= row < stop]
            if own:
                part._restart(own)

    def _free(self) -> None:
        for part, _, _ in self._parts:
            part.close()
