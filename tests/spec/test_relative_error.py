"""The relative error of two arrays is the same number wherever it is computed."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np

from lram_export.spec.parity import relative_error

SAID = """
import numpy as np
from lram_export.spec.parity import relative_error
random = np.random.default_rng(0)
for size in (1_000, 30_000, 1_000_000):
    values = random.standard_normal(size, np.float32)
    print(relative_error(values, values + random.standard_normal(size, np.float32) / 100).hex())
"""


def said(threads: int) -> str:
    """The errors of some arrays, to the last bit, from a process whose BLAS has so many threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", SAID]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_threads_of_the_linear_algebra_do_not_matter() -> None:
    """A worker of a cluster has one, a process by itself one per core; their tables must be equal."""
    one = said(1)
    assert len(one.split()) == 3 and said(2) == one


def test_known_values() -> None:
    expected, actual = np.array([3.0, 4.0], np.float32), np.array([3.0, 5.0], np.float32)
    assert relative_error(expected, actual) == 0.2
    assert relative_error(expected, actual, floor=10.0) == 0.1
    assert relative_error(np.zeros(2, np.float32), expected) == 5.0
    assert relative_error(expected, np.array([math.nan, 4.0])) == math.inf
    assert relative_error(expected, np.array([math.inf, 4.0])) == math.inf
