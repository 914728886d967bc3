"""What computes the steps of a fleet: rows, one for each seat.

Everything here is called by one thread, that of :class:`~lram_export.serving.batching.Batcher`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.bundle import Bundle
from lram_export.errors import BundleError, LramError, UsageError, describe
from lram_export.policy import open_runtime
from lram_export.runtimes import Runtime, unavailable
from lram_export.runtimes.protocol import State
from lram_export.spec.tensors import StepSpec
from lram_export.system.machine import usable_cores

Arrays = tuple[NDArray[Any], ...]
Outcome = Arrays | Exception
"""The outputs of a row's step in the order of the specification, (1, ...) each, or why there are none."""


class Rows(Protocol):
    """Rows that know nothing of one another: what one does, or fails in, no other notices."""

    spec: StepSpec
    """Of one row."""
    size: int
    """How many there are."""
    together: bool
    """Whether a step of several rows costs less than steps of each."""

    def step(self, rows: Sequence[int], inputs: Sequence[Arrays]) -> list[Outcome]:
        """One step of some rows, with checked inputs in the order of the specification, (1, ...) each."""

    def settle(self) -> None:
        """Do what the last step left for the time after its answers."""

    def reset(self, row: int) -> None:
        """Fill the state of a row with initial values, whatever it held."""

    def state(self, row: int) -> State:
        """A copy of the state of a row; raises StepError where it was lost."""

    def load_state(self, row: int, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Continue a row from a state; raises ValueError and changes nothing if it does not fit."""

    def close(self) -> None:
        """Free everything."""


class SeparateRows:
    """A runtime of its own for each row: for every target, with the memory of as many policies."""

    together = False

    def __init__(self, runtimes: Sequence[Runtime]) -> None:
        self._runtimes = list(runtimes)
        self.spec, self.size = runtimes[0].spec, len(runtimes)

    def step(self, rows: Sequence[int], inputs: Sequence[Arrays]) -> list[Outcome]:
        """See :class:`Rows`."""
        return [self._step(self._runtimes[row], of_row) for row, of_row in zip(rows, inputs, strict=True)]

    def _step(self, runtime: Runtime, inputs: Arrays) -> Outcome:
        try:
            return tuple(values.copy() for values in runtime.step(*inputs))
        except (ValueError, LramError) as error:
            return error
        except Exception as error:  # of one robot: the others go on
            return BundleError(f"the step failed: {describe(error)}")

    def settle(self) -> None:
        """See :class:`Rows`."""
        for runtime in self._runtimes:
            runtime.settle()

    def reset(self, row: int) -> None:
        """See :class:`Rows`."""
        self._runtimes[row].reset()

    def state(self, row: int) -> State:
        """See :class:`Rows`."""
        return self._runtimes[row].state()

    def load_state(self, row: int, state: Mapping[str, NDArray[np.float32]]) -> None:
        """See :class:`Rows`."""
        self._runtimes[row].load_state(state)

    def close(self) -> None:
        """See :class:`Rows`."""
        for runtime in self._runtimes:
            runtime.close()


def open_rows(bundle: Bundle, target: str, robots: int, threads: int, spin: bool) -> Rows:
    """Rows for so many robots, as the target has them; raises as :func:`lram_export.policy.load_policy`."""
    if target == "native":
        return _native_rows(bundle, target, robots, threads, spin)
    runtimes: list[Runtime] = []
    try:
        for _ in range(robots):
            runtimes.append(open_runtime(bundle, target, threads, 1, spin))
    except BaseException:
        for runtime in runtimes:
            runtime.close()
        raise
    return SeparateRows(runtimes)


def _native_rows(bundle: Bundle, target: str, robots: int, threads: int, spin: bool) -> Rows:
    missing = unavailable(target)
    if missing is not None:
        raise UsageError(missing)
    from lram_export.runtimes.native_rows import load_rows

    with bundle.loading(target, robots, min(threads, usable_cores())) as artifact:
        return load_rows(artifact, threads, spin)
