"""Blocks and threads of a GPU, or plain loops in their place."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm.script import tirx as T

WARP = 32
WARPS = 8
THREADS = WARP * WARPS
COLUMNS = 32
"""Width of the tiles of C: one warp's."""

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


def threads() -> Any:
    """The threads of a block. All of them enter every loop; a loop for fewer has a condition inside."""
    return T.serial(THREADS) if _emulated else T.thread_binding(THREADS, "threadIdx.x")


def shared() -> str:
    """Where the threads of a block hand numbers on to each other."""
    return "global" if _emulated else "shared"
