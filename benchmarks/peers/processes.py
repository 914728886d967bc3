"""Processes of their own: each makes one thing, keeps it, and answers what it is asked."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from lram_export.errors import LramError, describe
from lram_export.system.processes import end_with_parent, interrupts_held

MOST_WORDS = 300
"""Characters of what went wrong that are told."""


class Child:
    """The parent's side. What the child and its libraries print goes to the end of a file."""

    def __init__(self, log: Path, make: Callable[..., Any], *arguments: Any, seconds: float) -> None:
        """Start it, and wait until the thing is made.

        Raises:
            LramError: that failed, took longer than ``seconds``, or the process died; in one line.
        """
        self._seconds = seconds
        context = multiprocessing.get_context("spawn")
        self._connection, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, log, make, arguments), daemon=False)
        with interrupts_held():
            self._process.start()
        child.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its process ID."""
        pid = self._process.pid
        assert pid is not None  # it was started
        return pid

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the thing; raises LramError as the constructor does."""
        try:
            self._connection.send((method, *arguments))
        except BrokenPipeError:
            raise LramError("the process died") from None
        return self._answer()

    def _answer(self) -> Any:
        end = time.monotonic() + self._seconds
        while not self._connection.poll(1.0):
            if time.monotonic() > end:
                raise LramError(f"no answer within {self._seconds:.0f} s")
        try:
            done, answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise LramError("the process died (out of memory?)") from None
        if not done:
            raise LramError(answer[:MOST_WORDS])
        return answer

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(timeout=2)
        if self._process.is_alive():
            try:
                os.killpg(self._process.pid, signal.SIGKILL)  # and the compilers that it started
            except ProcessLookupError:  # it has not come to make a group of its own
                self._process.kill()
            self._process.join()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(connection: Connection, log: Path, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.setsid()
    end_with_parent()
    words = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(words, 1)
    os.dup2(words, 2)
    try:
        thing = make(*arguments)
        connection.send((True, None))
        while True:
            method, *asked = connection.recv()
            connection.send((True, getattr(thing, method)(*asked)))
    except (EOFError, BrokenPipeError):
        os._exit(0)  # a runtime that fails while it is taken down says nothing that matters
    except Exception as error:  # peers raise whatever they like
        connection.send((False, " ".join(describe(error).split())))
