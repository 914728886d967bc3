"""Processes of our own: they end with the one that started them, and an interrupt is that one's to handle."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


def end_with_parent() -> None:
    """End this process when the one that started it has ended, whatever either is doing and however that ended.

    For a process of `multiprocessing`; elsewhere it does nothing.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Processes started in the block never hear of Ctrl-C, not even before their first line; we do, at its end."""
    # which the first process would start, and which then lets Ctrl-C through again, before that process is there
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
