"""Are a bundle's codes those of a checkpoint? Codes x scales against the checkpoint's matrices, one by one.

Nothing runs: what a target computes from the codes is another question. Two kinds of codes are told apart:

* rounded to nearest: scales are what rounding gives, and no weight is further than half a scale from its code; 16-bit
  weights are exactly what rounding gives. So there is one right answer, up to the rounding of float32.
* calibrated: errors are moved between the weights of an output channel so that they cancel on recorded inputs, so the
  weights of a channel may be further off than the nearest codes, but not in another place altogether: they are compared
  by the norm of the channel's error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.lowering import LoweredPolicy, matrix_values
from lram_export.quantization.nearest import round_to_nearest
from lram_export.spec.codes import NEAREST, QuantizedMatrix
from lram_export.spec.parity import relative_error
from lram_export.spec.precision import FORMATS

FLOAT_ROUNDING = 1e-5
"""Relative; of a quotient of float32 numbers, times the largest code."""
CALIBRATED, LOST = 6.0, 0.9
"""Largest relative error of a calibrated output channel, in units of what rounding to nearest costs, and at all. Up to
3 units were seen on the example policy, at `int8`. A channel of zeros has an error of 1, one of other weights 1.4."""


@dataclass(frozen=True)
class MatrixCheck:
    """One matrix: relative error (2-norm) of codes x scales, and what is wrong with them, if anything is."""

    name: str
    relative_error: float
    failure: str | None = None


@dataclass(frozen=True)
class CodesCheck:
    """All matrices of a bundle against a checkpoint."""

    method: str
    matrices: tuple[MatrixCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every matrix is the checkpoint's."""
        return not self.failures()

    @property
    def largest_error(self) -> float:
        """Largest relative error (2-norm) of a matrix."""
        return max((m.relative_error for m in self.matrices), default=0.0)

    def failures(self) -> list[str]:
        """One line per matrix that is not the checkpoint's."""
        return [f"{m.name}: {m.failure}" for m in self.matrices if m.failure is not None]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        errors = {m.name: m.relative_error for m in self.matrices}
        return {"passed": self.passed, "method": self.method, "relative_errors": errors, "failures": self.failures()}


@np.errstate(over="ignore", invalid="ignore")  # codes x scales may be infinite: then it is told
def check_codes(method: str, matrices: Mapping[str, QuantizedMatrix], policy: LoweredPolicy) -> CodesCheck:
    """Compare codes x scales with a policy's matrices; ``method`` is how the codes are said to have been chosen."""
    coarsest = 0.0
    if method != NEAREST:
        coarsest = max((_nearest_error(m, matrix_values(policy, m.name)) for m in matrices.values()), default=0.0)
    checks = []
    for name, matrix in matrices.items():
        values = matrix_values(policy, name)
        if method == NEAREST:
            failure = _failure_of_nearest(matrix, values)
        else:
            failure = _failure_of_calibrated(matrix, values, coarsest)
        checks.append(MatrixCheck(name, relative_error(values, matrix.dequantize()), failure))
    return CodesCheck(method, tuple(checks))


def _failure_of_nearest(matrix: QuantizedMatrix, values: NDArray[np.float32]) -> str | None:
    nearest, found = round_to_nearest(matrix.name, values, matrix.format), matrix.dequantize()
    if not matrix.scales.size:
        return _first(
            found != nearest.dequantize(), "weight {at}: {0:.6g} is not what {1:.6g} rounds to", found, values
        )
    off = ~(np.abs(matrix.scales - nearest.scales) <= FLOAT_ROUNDING * nearest.scales)
    failure = _first(off, "scale {at}: {0:.6g}, rounding gives {1:.6g}", matrix.scales, nearest.scales)
    if failure is not None:
        return failure
    scales = np.repeat(nearest.scales, matrix.group, axis=1)[:, : values.shape[1]]
    off = ~(np.abs(values - found) <= (0.5 + FLOAT_ROUNDING * FORMATS[matrix.format].largest) * scales)
    return _first(
        off, "weight {at}: {0:.6g} is further than half a scale ({2:.3g}) from {1:.6g}", found, values, scales
    )


def _failure_of_calibrated(matrix: QuantizedMatrix, values: NDArray[np.float32], coarsest: float) -> str | None:
    """The bound heeds the coarsest format in the bundle: what it did to inputs is made up for in later matrices."""
    nearest = round_to_nearest(matrix.name, values, matrix.format).dequantize()
    norms = np.maximum(np.linalg.norm(values, axis=1), np.finfo(np.float32).tiny)
    bound = np.minimum(CALIBRATED * np.maximum(np.linalg.norm(values - nearest, axis=1) / norms, coarsest), LOST)
    error = np.linalg.norm(values - matrix.dequantize(), axis=1) / norms
    return _first(~(error <= bound), "output {at}: relative error {0:.3g}, {1:.3g} is the most", error, bound)


def _nearest_error(matrix: QuantizedMatrix, values: NDArray[np.float32]) -> float:
    return relative_error(values, round_to_nearest(matrix.name, values, matrix.format).dequantize())


def _first(off: NDArray[np.bool_], text: str, *arrays: NDArray[Any]) -> str | None:
    """The text with the values at the first place that is off, and how many there are; None where nothing is."""
    count = int(off.sum())
    if not count:
        return None
    at = tuple(int(i) for i in np.unravel_index(int(off.argmax()), off.shape))
    told = text.format(*(array[at] for array in arrays), at=list(at))
    return told if count == 1 else f"{told} (and {count - 1} more of {off.size})"
