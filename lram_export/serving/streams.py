"""Streams of robots that are open at the server: who says nothing for too long is hung up on, and all are at the end.

Everything here belongs to the thread of the server's event loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc.aio

ENDED = "the server is being stopped, or heard nothing for too long; send it again"


class ServedStream:
    """One stream, as the server reads it."""

    def __init__(self, context: Any, first: float, idle: float) -> None:
        self._context, self._patience, self._idle = context, first, idle
        self.until = math.inf
        """When something has to have been said, on the clock of :func:`time.monotonic`; inf while it is answered."""
        self.ending = False

    async def read(self) -> bytes | None:
        """The next message; None: there is no other."""
        if self.ending:
            await self.end()
        self.until = time.monotonic() + self._patience
        data = await self._context.read()
        self.until, self._patience = math.inf, self._idle
        return data if isinstance(data, bytes) else None

    async def end(self) -> None:
        """Hang up; raises what makes gRPC forget the call."""
        await self._context.abort(grpc.StatusCode.UNAVAILABLE, ENDED)


class Streams:
    """All of them: the first message has ``first`` seconds, any other ``idle``."""

    def __init__(self, first: float, idle: float) -> None:
        self._first, self._idle = first, idle
        self._open: set[ServedStream] = set()
        self._ending = False

    @contextmanager
    def opened(self, context: Any) -> Iterator[ServedStream]:
        """A stream while it lasts."""
        stream = ServedStream(context, self._first, self._idle)
        stream.ending = self._ending
        self._open.add(stream)
        try:
            yield stream
        finally:
            self._open.discard(stream)

    async def end_silent(self) -> None:
        """Hang up on those that have said nothing for too long."""
        await self._end(time.monotonic())

    async def end(self) -> None:
        """Hang up on all, but finish first what is being answered."""
        self._ending = True
        for stream in self._open:
            stream.ending = True
        await self._end(math.nextafter(math.inf, 0.0))

    async def _end(self, latest: float) -> None:
        for stream in list(self._open):
            if stream.until <= latest:
                with suppress(grpc.aio.BaseError):  # it is told that it was; or its connection is lost
                    await stream.end()
