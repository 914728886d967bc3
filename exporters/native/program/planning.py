"""A place for every buffer: those that are not needed at the same time share one."""

from __future__ import annotations

from collections.abc import Sequence

from lram_export.exporters.native.program.tape import Tape
from lram_export.targets.native.program import NOWHERE, STRIDE, BufferEntry, BufferKind

Span = tuple[int, int]


def planned(tape: Tape, first: Sequence[int], kept: Sequence[int]) -> tuple[tuple[BufferEntry, ...], int]:
    """Entries of all buffers of a tape, and the floats per row that the arena needs.

    Args:
        tape: the program.
        first: buffers that are there before the first instruction.
        kept: buffers that are read after the last one.
    """
    spans = _spans(tape, first, kept)
    starts: dict[int, int] = {}
    arena = 0
    for buffer in sorted(spans, key=lambda b: spans[b]):
        size = _rounded(tape.buffers[buffer].size)
        taken = sorted(
            (starts[other], starts[other] + _rounded(tape.buffers[other].size))
            for other in starts
            if spans[other][0] <= spans[buffer][1] and spans[buffer][0] <= spans[other][1]
        )
        at = 0
        for start, end in taken:
            if at + size <= start:
                break
            at = max(at, end)
        starts[buffer] = at
        arena = max(arena, at + size)
    return tuple(_entry(tape, number, starts.get(number, 0)) for number in range(len(tape.buffers))), arena


def _entry(tape: Tape, number: int, start: int) -> BufferEntry:
    buffer = tape.buffers[number]
    if buffer.kind is BufferKind.CONSTANT:
        return BufferEntry(buffer.kind, buffer.number, 0)
    return BufferEntry(buffer.kind, start if buffer.kind is BufferKind.ARENA else buffer.number, _rounded(buffer.size))


def _spans(tape: Tape, first: Sequence[int], kept: Sequence[int]) -> dict[int, Span]:
    """From the first to the last instruction that a buffer of the arena is needed for."""
    found: dict[int, Span] = {}

    def need(buffer: int, when: int) -> None:
        if buffer != NOWHERE.buffer and tape.buffers[buffer].kind is BufferKind.ARENA:
            start, end = found.get(buffer, (when, when))
            found[buffer] = min(start, when), max(end, when)

    for buffer in first:
        need(buffer, -1)
    for when, instruction in enumerate(tape.instructions):
        for place in instruction.operands:
            need(place.buffer, when)
    for buffer in kept:
        need(buffer, len(tape.instructions))
    return found


def _rounded(size: int) -> int:
    return -(-size // STRIDE) * STRIDE
