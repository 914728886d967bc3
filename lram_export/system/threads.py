"""Work in another thread beside what this one does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Have another thread work while the block runs; ends when both have ended.

    What the work raised is raised, whatever the block raised.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # it is the caller's, who waits for it
            failed.append(error)

    thread = threading.Thread(target=run, name="lram-beside")
    thread.start()
    try:
        yield
    finally:
        thread.join()
        if failed:
            raise failed[0] from None
