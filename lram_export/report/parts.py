"""What a page is made of beside its charts."""

from __future__ import annotations

from dataclasses import dataclass

OFTEN_MISSED = 0.01
"""Share of missed deadlines from which on a target is said not to keep the rate; fewer are told, too."""


@dataclass(frozen=True)
class Cell:
    """What stands in a table; ``kind`` is its class on the page."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the page, narrow enough for a screen."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


Line = dict[str, str]
"""Of the verdict: ``text``, and ``kind``, its class on the page."""


def line(kind: str, text: str) -> Line:
    """A line of the verdict; ``kind``: good, open or bad."""
    return {"kind": kind, "text": text}
