"""How LeRobot normalizes a vector, said as a :class:`Normalization` or a :class:`Scaling`. Free of torch.

From the source of LeRobot 0.4.4, ``processor/normalize_processor.py``, ``_NormalizationMixin._apply_transform``, all in
float32, with ``eps`` 1e-8 unless the step's configuration says another:

* ``MEAN_STD``: ``(x - mean) / (std + eps)``; back: ``x * std + mean``;
* ``MIN_MAX``: ``2 * (x - min) / range - 1`` with ``range = max - min``, or ``eps`` where that is 0; back:
  ``(x + 1) / 2 * range + min``;
* ``QUANTILES`` and ``QUANTILE10``: the same from ``q01`` to ``q99``, from ``q10`` to ``q90``;
* ``IDENTITY``: nothing.

Policies from before there were processors (``policies/normalize.py``, up to 0.3) add ``1e-8`` to every range on the way
in, ``(x - min) / (max - min + 1e-8) * 2 - 1``, and to none on the way back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.spec.bounds import SMALLEST_SCALE
from lram_export.spec.interface import Floats, Normalization, Scaling

IDENTITY, MEAN_STD = "IDENTITY", "MEAN_STD"
STATISTICS = {
    MEAN_STD: ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
"""Mode -> the statistics it takes: a mean and a deviation, or both ends of a range."""
MODES = (*STATISTICS, IDENTITY)
EPSILON = 1e-8


@dataclass(frozen=True)
class Statistics:
    """What training measured of one vector.

    Attributes:
        where: file and feature, for messages.
        mode: a key of :data:`STATISTICS`.
        one, other: the two statistics of the mode, float32.
        epsilon: what keeps LeRobot from dividing by 0.
        every_range: whether it is added to every range, as before there were processors.
    """

    where: str
    mode: str
    one: Floats
    other: Floats
    epsilon: float = EPSILON
    every_range: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError unless the statistics are of one vector, and the right way round."""
        first, second = STATISTICS[self.mode]
        if self.one.shape != self.other.shape:
            raise ValueError(f"{self.where}: {first} has {self.one.size} numbers, {second} {self.other.size}")
        wrong = np.flatnonzero(self.other < (0 if self.mode == MEAN_STD else self.one))
        if wrong.size:
            i = wrong[0]
            expected = "0 or more" if self.mode == MEAN_STD else f"at least {first}, {self.one[i]:g},"
            raise ValueError(f"{self.where}.{second}: expected {expected}, got {self.other[i]:g} at element {i}")

    def normalization(self) -> Normalization:
        """What is done to an observation.

        Of a mean and a deviation it is LeRobot's to the bit. Of a range it has the same zero and slope, and another
        rounding, see :meth:`difference`. An element that never changed has no middle: what it always was is -1, as
        LeRobot has it, and float32 leaves nothing near it.
        """
        if self.mode == MEAN_STD:
            return Normalization(plain(self.one), plain(self.other + np.float32(self.epsilon)))
        width = self.other - self.one + np.float32(self.epsilon) if self.every_range else self._width()
        middle, half = self._middle(width), width / 2
        still = self.one == self.other
        middle = np.where(still & (middle == self.one), np.nextafter(self.one, np.float32(np.inf)), middle)
        return Normalization(plain(middle), plain(np.where(still, middle - self.one, half)))

    def scaling(self) -> Scaling:
        """What is done to an action: LeRobot's way back, in which an element that never changed is what it was."""
        if self.mode == MEAN_STD:
            return Scaling(plain(_not_zero(self.other)), plain(self.one))
        width = self.other - self.one if self.every_range else self._width()
        return Scaling(plain(_not_zero(width / 2)), plain(self._middle(width)))

    def difference(self) -> float:
        """How far a normalized observation is from LeRobot's for the rounding of the middle of its range, at most.

        Elements that never changed are left out: they are the same where they are what they always were.
        """
        if self.mode == MEAN_STD:
            return 0.0
        normalization = self.normalization()
        middle, half = (
            np.asarray(n, np.float32).astype(np.float64) for n in (normalization.mean, normalization.deviation)
        )
        exact = self.one.astype(np.float64) + half
        return float(np.max(np.abs(middle - exact) / half, where=self.one != self.other, initial=0.0))

    @property
    def still(self) -> list[int]:
        """The elements that never changed."""
        return list(map(int, np.flatnonzero(self.other == (0 if self.mode == MEAN_STD else self.one))))

    def _width(self) -> NDArray[Any]:
        """Of a range, kept from being 0."""
        width = self.other - self.one
        return np.where(width == 0, np.float32(self.epsilon), width)

    def _middle(self, width: NDArray[Any]) -> Floats:
        """Of a range, rounded once."""
        middle: Floats = (self.one.astype(np.float64) + width.astype(np.float64) / 2).astype(np.float32)
        return middle


def plain(values: NDArray[Any]) -> tuple[float, ...]:
    """Numbers of float32 as the shortest decimals that are read as them."""
    return tuple(float(str(value)) for value in values.astype(np.float32))


def _not_zero(scale: NDArray[Any]) -> NDArray[Any]:
    """A scale of 0 is a mistake in an interface; this one leaves the offset as it is, to the bit unless that is 0."""
    found: NDArray[Any] = np.maximum(scale, np.float32(SMALLEST_SCALE))
    return found
