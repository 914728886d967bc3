"""Which loops of a kernel are divided among threads, where a job's own buffers lie, and what is fetched early."""

from typing import Any

from tvm.script import tirx as T

PARALLEL_BYTES = 128 * 1024
"""A kernel that reads less runs on one thread: two take 1 to 3 microseconds to start, in which one reads as much. And
where another program wants the second core, they wait for each other for milliseconds."""

STACK = "global"
"""Scope of a job's own small buffers: TVM leaves those of less than 1 KB on the stack, where LLVM finds registers for
them. Those that are "local" it takes from a pool and gives back, for every job again."""


def jobs_loop(count: int, size: int) -> Any:
    """Jobs that read ``size`` bytes in all."""
    return T.parallel(count) if size >= PARALLEL_BYTES else T.serial(count)


def rows_loop(rows: int, width: int) -> Any:
    """Rows of a kernel that reads little more than its input and writes as much."""
    return jobs_loop(rows, 8 * rows * width)


AHEAD = 2048
"""Bytes from a read to what is fetched beside it: the processor's own fetching stops at the end of a page.
Less brings less, and more brings no more."""
LINE = 64
"""Bytes of a cache line."""


def fetch(weight: Any, *indices: Any) -> Any:
    """Begin to read the cache line of an element, which may lie beyond the end: a statement, for ``T.evaluate``."""
    to_read, most_local, data = T.int32(0), T.int32(3), T.int32(1)
    return T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(weight[indices]), to_read, most_local, data)
