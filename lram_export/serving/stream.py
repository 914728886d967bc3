"""A robot's stream of messages to a server, one of which is under way at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

from lram_export.serving.deadlines import Deadline, Watch

Begin = Callable[[Iterator[bytes]], Any]
"""Begins a stream of gRPC from what is sent: what iterates over its answers."""


class StreamLostError(Exception):
    """The server ended the stream, and had nothing to say of it."""


class OverdueError(Exception):
    """No answer came in time; the message may have arrived."""


class Stream:
    """Messages and their answers. The stream is begun when it is needed, and anew when it was lost.

    A stream of gRPC has no end in time for each of its answers: :class:`Watch` calls it off.
    """

    def __init__(self, begin: Begin) -> None:
        self._begin, self._watch = begin, Watch()
        self._sent: SimpleQueue[bytes | None] = SimpleQueue()
        self._answers: Any = None

    def call(self, data: bytes, deadline: Deadline) -> bytes:
        """The answer to a message. Whatever this raises, the next message begins a new stream.

        Raises:
            grpc.RpcError: as it says itself.
            StreamLostError: the server ended the stream.
            OverdueError: no answer until the deadline.
        """
        if self._answers is None:
            self._sent = SimpleQueue()
            self._answers = self._begin(iter(self._sent.get, None))
        answers, self._answers = self._answers, None
        kept = False
        try:
            with self._watch.over(deadline, answers.cancel):
                self._sent.put(data)
                answer = next(answers)
            kept = not self._watch.fired
        except StopIteration:
            raise StreamLostError from None
        except Exception:
            if self._watch.fired:
                raise OverdueError from None
            raise
        finally:
            if kept:
                self._answers = answers
            else:
                self._end(answers)
        return bytes(answer)

    def close(self) -> None:
        """End the stream, and what watches it; safe to call twice."""
        if self._answers is not None:
            self._end(self._answers)
            self._answers = None
        self._watch.close()

    def __del__(self) -> None:
        """Threads hold nothing of a stream that nobody closed, and go with it."""
        self.close()

    def _end(self, answers: Any) -> None:
        self._sent.put(None)  # lets the thread go that takes what is sent
        answers.cancel()
