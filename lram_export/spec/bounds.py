"""The largest sizes that are read from a file.

Whatever is larger is damage or malice, and is refused before memory is taken for it. The bounds are those of the
native engine's artifact (`kernels/native/src/artifact.cpp`): about 20 times the largest published model in every
direction, so that nobody's model meets them. Free of torch.
"""

from __future__ import annotations

import math

MOST_JSON_BYTES = 4 << 20
"""A manifest of 256 blocks has half of a megabyte."""
MOST_JSON_DEPTH = 32
MOST_TEXT = 1000
"""Characters of a name."""
MOST_FILE_BYTES = 1 << 42
MOST_FILES = 64
MOST_PARAMETERS = 1 << 40

MOST_STATES = 1 << 13
"""State tensors: those of the largest number of blocks, several each."""
IMAGE = ((1, 64), (1, 1024), (1, 1024))
"""Smallest and largest channels, height and width."""

MOST_BATCH = 1 << 12
MOST_ROBOTS = 1 << 10
"""Seats of one server."""
MOST_OBSERVATION = 1 << 16
MOST_ACTIONS = 1 << 10
MOST_ELEMENT_NAMES = MOST_OBSERVATION
"""Names, units and numbers that an interface has for the elements of a field."""
MOST_FLOAT32 = 3.4028234e38
SMALLEST_SCALE = 1e-30
"""Of a reward scale: a smaller one is 0, or its inverse infinite, in float32."""

MOST_STEPS = 1 << 20
"""Recorded steps of a bundle."""
MOST_EXPANSION = 32
FREE_EXPANSION = 64 << 20
"""Recorded steps of a bundle may be unpacked to this many times their size, and this many bytes anyway: logits are
noise, which packs to half of its size; pixels can pack to nothing."""
RECORDING_EXPANSION = 512
"""The same of a recording that a user gives, in which images may stand still."""


def rounded_down(value: float) -> float:
    """A positive bound to two digits, which are enough, and easy to read."""
    exponent = math.floor(math.log10(value)) - 1
    return float(f"{math.floor(value / 10.0**exponent)}e{exponent}")
