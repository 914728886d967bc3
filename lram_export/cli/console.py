"""What the command line prints: results on standard output, everything else on standard error."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from lram_export.progress import Advance


class ConsoleProgress:
    """One line on standard error per stage under way, also inside another; gone when done. Silent if ``quiet``.

    Where standard error is no terminal, a plain line says which stage begins, and stays.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._bar: RichProgress | None = None

    @contextmanager
    def stage(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """See :class:`lram_export.progress.Progress`."""
        if not sys.stderr.isatty():
            message(f"{description} ...", self.quiet)
        outermost = self._bar is None
        bar = self._bar or RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            _CountColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=self.quiet or not sys.stderr.isatty(),
        )
        self._bar = bar
        if outermost:
            bar.start()
        task = bar.add_task(description, total=total)
        try:
            yield lambda amount: bar.advance(task, amount)
        finally:
            bar.remove_task(task)
            if outermost:
                bar.stop()
                self._bar = None


class _CountColumn(MofNCompleteColumn):
    """How much of how much, where that is known."""

    def render(self, task: Task) -> Text:
        """See the base class."""
        return super().render(task) if task.total is not None else Text()


def message(text: str, quiet: bool) -> None:
    """A line for people, on standard error."""
    if not quiet:
        click.echo(text, err=True)


def print_json(document: object) -> None:
    """One JSON document on standard output; numbers that are not finite become null."""
    click.echo(json.dumps(_plain(document), indent=2))


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str] = (),
    *,
    many: bool = False,
) -> None:
    """A table on standard output, one row per thing; on a terminal too narrow for that, one column per thing.

    With ``many`` things, for which columns would be too narrow as well, only the lines around the cells go. Where words
    would still be broken in the middle, every thing gets lines of its own.
    """
    console = _console()
    unbounded = console.options.update(width=10_000)

    def measured(table: Table) -> Measurement:
        return Measurement.get(console, unbounded, table)

    table = _table(title, columns, rows)
    if measured(table).maximum > console.width:
        if many:
            table = _table(title, columns, rows, lines=False)
        else:
            turned = list(zip(*rows, strict=True))
            names, *facts = [(column, *values) for column, values in zip(columns, turned, strict=True)]
            table = _table(title, names, facts)
        if measured(table).minimum > console.width:
            table = _list(title, columns, rows)
    console.print(table)
    for note in notes:
        console.print(f"  {note}", markup=False, soft_wrap=not console.is_terminal)


def or_dash(value: object) -> str:
    """What stands in a table's cell: the value, or a dash for None."""
    return "-" if value is None else str(value)


def print_facts(title: str, facts: Sequence[tuple[str, str]]) -> None:
    """Two columns: what, and its value."""
    table = Table(title=Text(title), title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(name), Text(value))
    _console().print(table)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, lines: bool = True) -> Table:
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    if not lines:
        table.box, table.padding, table.pad_edge = None, (0, 1, 0, 0), False
    for i, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _list(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """One thing below the other, a line per column."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(columns[0], row[0])
        for column, value in zip(columns[1:], row[1:], strict=True):
            if value:
                table.add_row(f"  {column}", value)
    return table


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
