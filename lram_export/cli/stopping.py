"""How a signal stops a command: as an exception, so that nothing half-written stays, and with the usual exit code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REASONS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal was closed"}


class Stopped(BaseException):
    """A signal came; its exit code, and why in one line."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code, self.reason = 128 + number, REASONS[signal.Signals(number)]


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise :class:`Stopped` where the block is when a signal comes, and again at its end, whatever became of it.

    Foreign code may make something else of an exception that passes through it. What is ignored, as under `nohup`,
    stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[Stopped] = []

    def stop(number: int, _: FrameType | None) -> None:
        noted.append(Stopped(number))
        raise noted[-1]

    before = {number: signal.getsignal(number) for number in REASONS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, stop)
        yield
    except BaseException:
        if noted:
            raise noted[0] from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if noted:
        raise noted[0]
