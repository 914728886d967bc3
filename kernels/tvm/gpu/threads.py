"""Blocks and threads of a GPU, or plain loops in their place."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm.script import tirx as T

WARP = 32
WARPS = 8
THREADS = WARP * WARPS
COLUMNS = 8
"""Width of the tiles of C: a warp reads four rows of one. Few columns make many blocks."""
FOLD = 16
"""Threads that add up what all threads of a block have found, each as many, and the sums then one of them."""

_emulated = False


@contextmanager
def emulate() -> Iterator[None]:
    """Kernels made inside are plain loops, for a processor."""
    global _emulated
    _emulated = True
    try:
        yield
    finally:
        _emulated = False


def blocks(count: int) -> Any:
    """The blocks of a grid."""
    return T.serial(count) if _emulated else T.thread_binding(count, "blockIdx.x")


def threads(count: int = THREADS) -> Any:
    """The threads of a block. All of them enter every loop; a loop for fewer has a condition inside."""
    return T.serial(count) if _emulated else T.thread_binding(count, "threadIdx.x")


def shared() -> str:
    """Where the threads of a block hand numbers on to each other."""
    return "global" if _emulated else "shared"
