"""When something has to be done, and what calls it off when it is not."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Deadline:
    """When something has to be done, with all that it takes."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.end = seconds, time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds, at least a millisecond, with which gRPC can do nothing, but says so."""
        return max(self.end - time.monotonic(), 1e-3)


def _nothing() -> object:
    """What there is to call off between two things."""
    return None


class Watch:
    """A thread that calls off what takes too long, for who waits without an end of his own: one thing at a time.

    A thing wakes it only where it ends before it would wake; most cost a few assignments.
    """

    def __init__(self) -> None:
        self._changed, self._closed = threading.Condition(), False
        self._end = self._wakes = math.inf
        self._call_off: Callable[[], object] = _nothing
        self._fired = False
        self._thread: threading.Thread | None = None

    @contextmanager
    def over(self, deadline: Deadline, call_off: Callable[[], object]) -> Iterator[None]:
        """A context that is called off at the deadline, by ``call_off`` in another thread, unless it has ended."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lram-export deadlines", daemon=True)
                self._thread.start()
            self._call_off, self._end, self._fired = call_off, deadline.end, False
            if self._end < self._wakes:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._call_off, self._end = _nothing, math.inf

    @property
    def fired(self) -> bool:
        """Whether the last context was called off; it may have ended well all the same."""
        return self._fired

    def close(self) -> None:
        """Let the thread go; safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                if self._end <= time.monotonic():
                    self._end, self._fired = math.inf, True
                    self._call_off()
                self._wakes = self._end
                self._changed.wait(None if math.isinf(self._end) else max(self._end - time.monotonic(), 0.0))
