"""What limits a step: how fast this machine reads memory (at batch 1), and how fast it multiplies (over a window)."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

BUFFER_BYTES = 256 * 2**20
"""Read by all threads together per pass; well beyond any cache a robot's processor has."""

LEAST_PER_PASS = 256 * 2**20
"""Bytes that a pass reads at least."""

SIDE = 1024
"""Of the square matrices that are multiplied: large enough that products by BLAS come near the most they reach."""

Buffer = NDArray[np.float32]


class ReadBandwidth:
    """Streams through memory in ``threads`` threads with reductions that are one load per element.

    Two reductions are tried in turn, since which one is nearer to the memory's speed differs by processor:
    BLAS dot (set ``OPENBLAS_NUM_THREADS=1`` before numpy is imported) and a bitwise or.
    """

    def __init__(self, threads: int, size: int = BUFFER_BYTES) -> None:
        """Read ``size`` bytes, all threads together, per pass."""
        self._buffers = [np.ones(2 * (size // 8 // threads), np.float32) for _ in range(threads)]  # also read as int64
        self._pool = ThreadPoolExecutor(threads)
        # small buffers are read several times per pass: handing a pass to the threads takes longer than reading them
        self._repeats = max(1, LEAST_PER_PASS // size)
        self.bytes = self._repeats * sum(b.nbytes for b in self._buffers)

    def measure(self, passes: int = 6) -> float:
        """Bytes per second of the fastest of some passes."""
        best = 0.0
        for number in range(passes):
            read = partial(_read, _dot if number % 2 else _bitwise_or, self._repeats)
            start = time.perf_counter()
            list(self._pool.map(read, self._buffers))
            best = max(best, self.bytes / (time.perf_counter() - start))
        return best

    def __enter__(self) -> ReadBandwidth:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()


class ProductRate:
    """Multiplies float32 matrices by numpy's BLAS in ``threads`` threads, each its own.

    ``OPENBLAS_NUM_THREADS`` must be 1 before numpy is imported, or every product starts threads of its own.
    """

    def __init__(self, threads: int) -> None:
        """The matrices, filled once."""
        rng = np.random.default_rng(0)
        self._factors = [rng.standard_normal((2, SIDE, SIDE), dtype=np.float32) for _ in range(threads)]
        self._results = [np.empty((SIDE, SIDE), np.float32) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads)

    def measure(self, passes: int = 3) -> float:
        """Multiplications (each with its addition) per second of the fastest of some passes."""
        best = 0.0
        for _ in range(passes):
            start = time.perf_counter()
            list(self._pool.map(_multiply, self._factors, self._results))
            best = max(best, len(self._factors) * SIDE**3 / (time.perf_counter() - start))
        return best


def _multiply(factors: Buffer, result: Buffer) -> None:
    np.matmul(factors[0], factors[1], out=result)


def _read(reduction: Callable[[Buffer], float], times: int, buffer: Buffer) -> None:
    for _ in range(times):
        reduction(buffer)


def _dot(buffer: Buffer) -> float:
    return float(np.dot(buffer, buffer))


def _bitwise_or(buffer: Buffer) -> int:
    return int(np.bitwise_or.reduce(buffer.view(np.int64)))
