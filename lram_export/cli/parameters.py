"""What the command line refuses before any work begins: what click by itself takes in silence.

A single value given twice, an empty one, numbers that are not finite or that no machine could serve, files that do not
exist, outputs under another kind's name.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import click

from lram_export.hub.address import is_address
from lram_export.spec.bounds import MOST_BATCH

FLOAT32_MAX = 3.4028235e38


class Command(click.Command):
    """A command whose single-valued options are given once, whose values are not empty, and whose bundles are here."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See the base class."""
        if not ctx.resilient_parsing:
            self._check(ctx, list(args))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """See the base class; when all is known to be well said, bundles of the Hub are fetched, and their commit said.

        So a command works with one commit of a branch, whatever becomes of the branch meanwhile.
        """
        for parameter in self.params:
            if isinstance(parameter.type, BundlePath) and parameter.name is not None:
                value, quiet = ctx.params[parameter.name], bool(ctx.params.get("quiet"))
                several = isinstance(value, tuple)
                here = tuple(parameter.type.fetched(path, quiet) for path in (value if several else (value,)))
                ctx.params[parameter.name] = here if several else here[0]
        return super().invoke(ctx)

    def _check(self, ctx: click.Context, args: list[str]) -> None:
        values, _, given = self.make_parser(ctx).parse_args(args=args)
        for parameter, times in Counter(given).items():
            if not isinstance(parameter, click.Option) or parameter.is_flag or parameter.multiple or parameter.count:
                continue
            if times > 1:
                raise click.UsageError(f"{parameter.opts[-1]}: given {times} times, but it takes one value.", ctx)
        for parameter in self.params:
            value = values.get(parameter.name or "")
            if "" in (value if isinstance(value, list | tuple) else [value]) and parameter.default != "":
                name = parameter.opts[-1] if isinstance(parameter, click.Option) else parameter.make_metavar(ctx)
                raise click.UsageError(f"{name}: expected a value, got an empty one.", ctx)


class Number(click.FloatRange):
    """A number that float32 can hold: neither NaN nor infinite."""

    name = "number"

    def _describe_range(self) -> str:
        """What the help says of the range: nothing where there is none, instead of ``x<=None``."""
        return super()._describe_range() if self.min is not None or self.max is not None else ""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """From text to a number; fails for one that is not finite or beyond the range."""
        try:
            finite = math.isfinite(float(value)) and abs(float(value)) <= FLOAT32_MAX
        except ValueError:
            finite = True  # the class above says what it is
        if not finite:  # before the range, which tells the number and not what was typed
            self.fail(f"expected a finite number of at most {FLOAT32_MAX:.2g}, got '{value}'", param, ctx)
        return float(super().convert(value, param, ctx))


class OutputFile(click.Path):
    """A file to write, whose name says what it is."""

    def __init__(self, *suffixes: str) -> None:
        super().__init__(path_type=Path)
        self.suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """From text to a path; fails for a name with another ending."""
        path = Path(str(super().convert(value, param, ctx)))
        if not path.name.endswith(self.suffixes):
            self.fail(f"expected a name that ends with {' or '.join(self.suffixes)}, got '{path}'", param, ctx)
        return path


class BundlePath(click.Path):
    """A bundle's folder, or its address on the Hugging Face Hub; ``or_checkpoint``: what is there may be no bundle."""

    def __init__(self, *, exists: bool = False, or_checkpoint: bool = False) -> None:
        super().__init__(path_type=Path, exists=exists)
        self.or_checkpoint = or_checkpoint

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """From text to a path; an address is one as it is."""
        return Path(value) if is_address(value) else Path(str(super().convert(value, param, ctx)))

    def fetched(self, path: Path, quiet: bool) -> Path:
        """The folder of an address, of which the commit is said; any other path as it is. Raises as the library."""
        from lram_export.bundle.fetching import NoBundleError, fetch
        from lram_export.cli.console import ConsoleProgress, message
        from lram_export.hub.address import Address

        address = Address.of(path)
        if address is None or (self.or_checkpoint and address.file is not None):
            return path
        try:
            found = fetch(address, ConsoleProgress(quiet))
        except NoBundleError:
            if self.or_checkpoint:
                return path
            raise
        message(str(found), quiet)
        return found.path


class Target(click.ParamType[str]):
    """The name of a target."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name itself; fails for one that no runtime has."""
        from lram_export.runtimes import RUNTIMES

        if value not in RUNTIMES:
            self.fail(f"unknown target '{value}'; known: {', '.join(RUNTIMES)}", param, ctx)
        return str(value)


PATH = click.Path(path_type=Path)
"""Where the command itself says what is wrong with it."""
BUNDLE = BundlePath()
OTHER_BUNDLE = BundlePath(exists=True)
BUNDLE_OR_CHECKPOINT = BundlePath(or_checkpoint=True)
INPUT_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
TARGET = Target()
FINITE = Number()
POSITIVE = Number(0, min_open=True)
THREADS = click.IntRange(1, 1024)
PROCESSES = click.IntRange(1, 1024)
BATCH = click.IntRange(1, MOST_BATCH)
DIMENSION = click.IntRange(1, 1_000_000)
EPISODES = click.IntRange(1, 1_000_000)
SEED = click.IntRange(0, 2**32 - 1)
"""What every generator of random numbers takes, those of environments included."""


def steps(least: int) -> click.IntRange:
    """A number of steps: at least so many, at most what fits into memory."""
    return click.IntRange(least, 10_000_000)
