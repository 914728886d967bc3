"""Numbers of steps over time, in as many bins as a chart has room for, however many steps there are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 200
"""Most bins of time in a chart."""
STEPS_PER_BIN = 3
"""At least, on average, so that a loop that is now and then late leaves no bin empty."""
QUANTILES = (0.0, 0.5, 0.99, 1.0)

Floats = NDArray[np.float64]
Counted = NDArray[np.int64]


@dataclass(frozen=True)
class Spread:
    """A number over time: its least, its median, its 99th percentile and its most in every bin, (bins,); NaN in those
    that have none."""

    least: Floats
    median: Floats
    p99: Floats
    most: Floats


class Bins:
    """Bins of the same length over the time of steps, seconds, which only grows.

    Attributes:
        edges: of the bins, seconds, (bins + 1,).
        starts, ends: the steps of each bin, (bins,).
    """

    def __init__(self, time: Floats) -> None:
        count = min(BINS, -(-len(time) // STEPS_PER_BIN))
        low, high = (float(time[0]), float(time[-1])) if len(time) else (0.0, 0.0)
        self.edges = np.linspace(low, high if high > low else low + 1.0, count + 1)
        self.starts = np.searchsorted(time, self.edges[:-1])
        self.ends = np.append(self.starts, len(time))[1:]

    def __len__(self) -> int:
        return len(self.starts)

    def spread(self, values: Floats) -> Spread:
        """Of a number per step; what is not finite does not count."""
        found = [quantiles(values[start:end]) for start, end in zip(self.starts, self.ends, strict=True)]
        return Spread(*np.array(found).reshape(-1, len(QUANTILES)).T)

    def so_far(self, counts: Counted) -> Counted:
        """Of a count per step: its sum by the end of each bin."""
        return np.asarray(np.append(0, np.cumsum(counts))[self.ends], np.int64)


def quantiles(values: Floats) -> Floats:
    """The :data:`QUANTILES` of the finite ones, (4,); NaN where there are none."""
    found = values[np.isfinite(values)]
    return np.quantile(found, QUANTILES) if len(found) else np.full(len(QUANTILES), np.nan)
