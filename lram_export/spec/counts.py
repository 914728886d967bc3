"""How often limits clamped an action, and what its safety did. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Counts:
    """What became of one action, in ticks; an element's for each row, (B, elements), or a row's, (B,); int64.

    Attributes:
        clamped: at which a limit clamped the element.
        slowed: at which the element would have changed by more than it may.
        stopped: at which the safe action was wanted instead.
        consecutive: how many in a row, up to the last, a limit clamped any element; 0 if not at the last.
    """

    clamped: NDArray[np.int64]
    slowed: NDArray[np.int64]
    stopped: NDArray[np.int64]
    consecutive: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: a list of rows each."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}
