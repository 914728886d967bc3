"""How long work reports that it goes on; the command line shows it, the library stays silent by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Something that can show the stages of a piece of work."""

    def stage(self, description: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """A context manager for one stage, which yields a function to call with every amount done."""


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def stage(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """See :class:`Progress`."""
        yield lambda amount: None


SILENT = SilentProgress()
