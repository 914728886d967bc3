"""What a controller is told between two steps of a policy that is slower than it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.errors import UsageError
from lram_export.rates import MOST_TICKS
from lram_export.runtimes.protocol import check_rows

HOLD, LINEAR = "hold", "linear"
BETWEEN = (HOLD, LINEAR)

Action = NDArray[np.generic] | np.int64


class Between:
    """An action for every tick of a controller, ``ticks`` of them per step of the policy.

    ``hold``: each is the step's. ``linear``: they lie on a straight line from what was sent last to the step's action,
    which is the last of them, to the bit. So it is reached later than with ``hold``, by a period less a tick. What
    starts an episode is held: nothing was sent before it.
    """

    def __init__(self, ticks: int = 1, between: str = HOLD, dtype: str = "float32") -> None:
        """``dtype`` is that of the actions.

        Raises:
            UsageError: naming the argument, what was expected and what came.
        """
        if not 1 <= ticks <= MOST_TICKS:
            raise UsageError(f"ticks: expected 1 to {MOST_TICKS} per step, got {ticks}")
        if between not in BETWEEN:
            raise UsageError(f"between: expected {' or '.join(BETWEEN)}, got {between!r}")
        if between == LINEAR and dtype != "float32":
            raise UsageError(f"between: linear is for actions of float32, got {dtype}: hold it")
        self.ticks, self.between = ticks, between
        self._action: Any = None
        self._start: NDArray[np.float64] | None = None
        self._sent: NDArray[np.float32] | None = None
        self._before: NDArray[np.float32] | None = None

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """An episode starts, in all rows or in the given ones; these are of actions that have rows."""
        if rows is None:
            self._sent = None
        elif self._sent is not None:
            self._sent[check_rows(rows, len(self._sent))] = np.nan  # no action is that

    def aim(self, action: Action) -> None:
        """The policy took a step: go to its action from here."""
        self._action = action
        if self.between == LINEAR and self._sent is not None:
            self._start = np.where(np.isnan(self._sent), action, self._sent).astype(np.float64)
        else:
            self._start = None

    def again(self) -> None:
        """There is no new action: the one in hand is held, wherever on its line it is."""
        self._start = None

    def unsent(self) -> None:
        """What :meth:`at` gave last did not reach the robot: the next line begins at what did."""
        self._sent = self._before

    def at(self, tick: int) -> Any:
        """The action to send ``tick`` ticks after the step, from 0, a copy; ticks may be left out."""
        done = tick + 1
        if self.between == HOLD:
            return self._action.copy() if isinstance(self._action, np.ndarray) else self._action
        self._before = self._sent
        if self._start is None or done >= self.ticks:
            self._sent = np.array(self._action, np.float32)
        else:
            # a float32 times so few ticks is exact in float64: no rounding leads beyond the two ends
            line = (self._start * (self.ticks - done) + np.asarray(self._action, np.float64) * done) / self.ticks
            self._sent = line.astype(np.float32)
        return self._sent.copy()
