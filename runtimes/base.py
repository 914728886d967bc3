"""What all runtimes do alike, so that each says the same of the same mistake: checks, refusals, results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from lram_export.errors import BundleError, LramError, StepError, describe
from lram_export.runtimes.guard import Guard
from lram_export.runtimes.protocol import State, StepInputs, StepOutput, check_rows, check_state, first_beyond
from lram_export.spec.tensors import InitialTensors, StepSpec, initial_values

LOST = "the state was lost in a step whose results were not finite; call reset() or load_state()"


class BaseRuntime(ABC):
    """A :class:`~lram_export.runtimes.protocol.Runtime` around what differs from target to target.

    A step becomes true only when its results are finite. A target that keeps the old state beside the new one makes
    the new one current in :meth:`_commit`; one that updates it in place has lost it then, and says so at every call
    until it gets a new one.
    """

    in_place = True
    """Whether a step overwrites the state it starts from."""
    checked_by_engine = False
    """Whether the engine itself finds inputs and outputs that are not finite."""
    leaves_work = False
    """Whether a step leaves work for the time after its action."""

    def __init__(self, spec: StepSpec, initial: InitialTensors, inputs: StepInputs | None = None) -> None:
        """Keep what every runtime has; ``initial`` are the states that start as a tensor, each for one row."""
        self.spec = spec
        self._initial = {state.name: initial_values(state, initial) for state in spec.states}
        self._inputs = StepInputs(spec, checked_by_engine=self.checked_by_engine) if inputs is None else inputs
        self._guard = Guard(self)
        self._lost: set[int] = set()
        checked = () if self.checked_by_engine else spec.computed
        self._zeros = {i: np.zeros(spec.outputs[i].size, np.float32) for i in checked}

    @abstractmethod
    def _step(self) -> StepOutput:
        """Compute a step from the arrays of ``_inputs``."""

    def _commit(self) -> None:  # noqa: B027 - nothing to do where the state is updated in place
        """Make the new state the current one, where both are kept."""

    def _settle(self) -> None:  # noqa: B027 - most targets leave nothing
        """Do what the last step left for the time after its action."""

    @abstractmethod
    def _save(self) -> State:
        """Copies of all state tensors."""

    @abstractmethod
    def _load(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Take a state that was checked."""

    @abstractmethod
    def _restart(self, rows: list[int]) -> None:
        """Fill rows of the state with initial values, whatever they held."""

    @abstractmethod
    def _free(self) -> None:
        """Free everything; called once."""

    def step(self, *inputs: NDArray[np.generic]) -> StepOutput:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        with self._guard:
            self._check_state_is_there()
            self._inputs.fill(*inputs)
            try:
                output = self._step()
            except LramError:
                raise
            except Exception as error:  # toolkits are foreign code, which raises whatever it likes
                if self.checked_by_engine:
                    self._inputs.check()
                self._lose()
                raise BundleError(
                    f"the step failed: {describe(error)}; is the artifact damaged? Copy or export the bundle again"
                ) from None
            for place, zeros in self._zeros.items():
                # 0 times anything that is not finite is NaN: the cheapest way to see all values
                if np.vdot(output.arrays[place], zeros) != 0:
                    found, name = first_beyond(output.arrays[place]), self.spec.outputs[place].name
                    self._lose()
                    outcome = LOST if self.in_place else "the state is as it was"
                    raise StepError(f"{name}: expected finite values, got {found}; {outcome}")
            self._commit()
            return output

    def settle(self) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        with self._guard:
            self._settle()

    def state(self) -> State:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        with self._guard:
            self._check_state_is_there()
            return self._save()

    def load_state(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        with self._guard:
            check_state(self.spec, state)
            self._load(state)
            self._lost.clear()

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        with self._guard:
            chosen = check_rows(rows, self.spec.batch_size)
            if chosen:  # to an engine, no rows may mean all
                self._restart(chosen)
            self._lost.difference_update(chosen)

    def close(self) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        if self._guard.close():
            self._free()

    def _lose(self) -> None:
        if self.in_place:
            self._lost.update(range(self.spec.batch_size))

    def _check_state_is_there(self) -> None:
        if self._lost:
            raise StepError(LOST)
