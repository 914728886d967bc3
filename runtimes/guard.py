"""Who may call a policy: one thread at a time, in the process that loaded it, until it is closed."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from lram_export.errors import LramError

CLOSED = "the policy is closed; load it again"
FORKED = "the policy was loaded before this process forked, and its threads are not here; load it in the child process"
BUSY = "the policy is in use by another thread; give every thread its own, or take turns"
PATIENCE = 60.0
"""Seconds that an exchange, and who comes during one, wait for who is inside: longer than any step."""

_forks = 0
_used: set[str] = set()
_orphaned: set[str] = set()
_holders: weakref.WeakSet[Guard] = weakref.WeakSet()


class Guard:
    """A context for everything that is done with what ``holder`` holds; refuses with RuntimeError who may not."""

    def __init__(self, holder: object) -> None:
        self.holder = weakref.ref(holder)
        self._forks, self._lock, self._closed = _forks, threading.Lock(), False
        self._exchange, self._exchanging = threading.Lock(), False
        _holders.add(self)

    def __enter__(self) -> None:
        if self._closed or self._forks != _forks:
            self.check()
        if not self._lock.acquire(blocking=False):
            self._wait_for_exchange()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def check(self) -> None:
        """Raise RuntimeError where nobody gets in: it is closed, or this process forked."""
        if self._closed:
            raise RuntimeError(CLOSED)
        if self._forks != _forks:
            raise RuntimeError(FORKED)

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """A context to put something else in place of what is held: waits for who is inside, and who comes then waits.

        Raises:
            RuntimeError: as entering does; or whoever is inside stays there.
        """
        self.check()
        with self._exchange:
            self._exchanging = True
            try:
                if not self._lock.acquire(timeout=PATIENCE):
                    raise RuntimeError(BUSY)
                try:
                    self.check()
                    yield
                finally:
                    self._lock.release()
            finally:
                self._exchanging = False

    def _wait_for_exchange(self) -> None:
        """Get in after an exchange; for another thread's step nobody waits, which is a mistake to report."""
        for _ in range(3):  # one may have ended, and another begun, since the last try
            if self._lock.acquire(timeout=PATIENCE) if self._exchanging else self._lock.acquire(blocking=False):
                break
        else:
            raise RuntimeError(BUSY)
        if self._closed:
            self._lock.release()
            raise RuntimeError(CLOSED)

    def close(self) -> bool:
        """Let nobody in any more; whether there is something to free, which a forked process must not do.

        Raises:
            RuntimeError: another thread is inside.
        """
        if self._closed or self._forks != _forks:
            self._closed = True
            return False
        with self:
            self._closed = True
        return True


def use_threads_of(library: str) -> None:
    """Note the use of a library that has one set of threads, or one hold on a GPU, for the whole process.

    Raises:
        LramError: it was used before this process forked; here it would wait for its threads for ever, or find no GPU.
    """
    if library in _orphaned:
        raise LramError(
            f"{library} was in use before this process forked, and its threads, or its GPU, are not here; start the "
            f"process with spawn instead of fork, or use {library} in one of the two only"
        )
    _used.add(library)


def _after_fork() -> None:
    """Never free what was loaded before the fork: its threads, which that would wait for, are in the other process."""
    global _forks
    _forks += 1
    _orphaned.update(_used)
    for guard in list(_holders):
        holder = guard.holder()
        if holder is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(holder))


os.register_at_fork(after_in_child=_after_fork)
