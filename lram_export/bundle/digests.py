"""Two digests of a file: its SHA-256, which every tool makes, and one that several threads make together. No torch.

SHA-256 goes through a file from its start to its end, in one thread, and was most of the time that loading a large
policy took. So of a file larger than :data:`PIECE_BYTES` the manifest also lists the SHA-256 over those of its pieces
of that size, as text, a line each. What makes it without this package::

    split -b 4M --filter=sha256sum FILE | cut -c -64 | sha256sum
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

PIECE_BYTES = 4 << 20
_READ_BYTES = 1 << 20
"""At once: what is read is still in a core's cache when it is hashed."""

Advance = Callable[[int], None]


class _Digest(Protocol):
    def update(self, data: memoryview, /) -> None: ...


def both_digests(file: int, size: int, advance: Advance | None = None) -> tuple[str, str | None]:
    """SHA-256 of the first bytes of an open file, and over their pieces; None in place of that if there is but one.

    ``advance`` is told the bytes of each part that was read.
    """
    whole, lines, buffer = hashlib.sha256(), list[str](), _buffer()
    for start in range(0, size, PIECE_BYTES):
        piece = hashlib.sha256()
        _read(file, buffer, start, min(PIECE_BYTES, size - start), (whole, piece), advance)
        lines.append(piece.hexdigest())
    return whole.hexdigest(), _joined(lines) if size > PIECE_BYTES else None


def pieces_sha256(file: int, size: int, threads: int = 1) -> str:
    """SHA-256 over those of the pieces of the first bytes of an open file.

    Args:
        file: its descriptor; where it stands does not matter.
        size: how many bytes; a file that has become shorter gives another digest.
        threads: how many read and hash, the caller's among them.

    Raises:
        OSError: the file cannot be read.
    """
    starts = range(0, size, PIECE_BYTES)
    left, lines, failed = deque(starts), dict.fromkeys(starts, ""), list[OSError]()

    def work() -> None:
        try:
            buffer = _buffer()
            while left:
                start, piece = left.popleft(), hashlib.sha256()
                _read(file, buffer, start, min(PIECE_BYTES, size - start), (piece,), None)
                lines[start] = piece.hexdigest()
        except IndexError:  # another thread was faster
            pass
        except OSError as error:
            left.clear()
            failed.append(error)

    others = [threading.Thread(target=work, name="lram-hash") for _ in range(min(threads, len(starts)) - 1)]
    try:
        for thread in others:
            thread.start()
        work()
    finally:
        left.clear()  # whatever interrupted this thread, nobody reads when it is gone
        for thread in others:
            if thread.ident is not None:
                thread.join()
    if failed:
        raise failed[0]
    return _joined(lines.values())


def _buffer() -> memoryview:
    """At the start of a page: the system copies to there three times as fast."""
    return memoryview(mmap.mmap(-1, _READ_BYTES))


def _read(
    file: int, buffer: memoryview, start: int, size: int, digests: Iterable[_Digest], advance: Advance | None
) -> None:
    """Tell digests what is in a file from ``start`` on: so many bytes, or as many as there are."""
    end = start + size
    while start < end and (got := os.preadv(file, [buffer[: min(len(buffer), end - start)]], start)) > 0:
        for digest in digests:
            digest.update(buffer[:got])
        start += got
        if advance is not None:
            advance(got)


def _joined(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
