"""The machine that a kit is for, as far as compiled packages ask: its processor, its Python, its C library."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from lram_export.errors import UsageError

MACHINES = ("x86_64", "aarch64")
"""What `uname -m` says of those that wheels are built for."""
GLIBC = "2.31"
"""Ubuntu 20.04, Debian 11: what a robot has at least, unless another one is told."""
_OLDEST_PYTHON = (3, 10)
_OLDEST_GLIBC = {"x86_64": 5, "aarch64": 17}
"""The first 2.N that a `manylinux` tag can name there."""
_NAMED = {"manylinux2014": 17, "manylinux2010": 12, "manylinux1": 5}
"""Older names of such tags, and the N they stand for."""


@dataclass(frozen=True)
class Robot:
    """A machine with a Python.

    Attributes:
        machine: what `uname -m` says.
        python: its minor version, ``3.10``.
        glibc: the version of its C library, or an older one, ``2.31``.

    Raises:
        UsageError: no such version, or one that lram-export does not run on.
    """

    machine: str
    python: str
    glibc: str = GLIBC

    def __post_init__(self) -> None:
        found = re.fullmatch(r"3\.(\d{1,2})", self.python)
        if not found or (3, int(found[1])) < _OLDEST_PYTHON:
            raise UsageError(
                f"--python: expected 3.10 or a later one, such as 3.12, got '{self.python}'; where there is none, "
                f"--language c makes a kit that needs no Python"
            )
        if not re.fullmatch(r"2\.\d{1,2}", self.glibc) or self.minor_glibc < _OLDEST_GLIBC["aarch64"]:
            raise UsageError(f"--glibc: expected 2.17 or a later one, such as 2.35, got '{self.glibc}'")

    @staticmethod
    def of(machine: str | None = None, python: str | None = None, glibc: str | None = None) -> Robot:
        """One that is like this machine in what is not told."""
        here = ".".join(map(str, sys.version_info[:2]))
        return Robot(machine or platform.machine(), python or here, glibc or GLIBC)

    @property
    def minor_glibc(self) -> int:
        """31 of ``2.31``."""
        return int(self.glibc.partition(".")[2])

    @property
    def interpreter(self) -> str:
        """As tags of wheels have its Python, ``cp310``."""
        return "cp" + self.python.replace(".", "")

    @property
    def platforms(self) -> tuple[str, ...]:
        """As tags of wheels have what it runs, the newest first."""
        return tuple(f"{name}_{self.machine}" for name in self._platforms())

    def _platforms(self) -> Iterator[str]:
        oldest = _OLDEST_GLIBC.get(self.machine, 17)
        for minor in range(self.minor_glibc, oldest - 1, -1):
            yield f"manylinux_2_{minor}"
        yield from (name for name, minor in _NAMED.items() if minor >= oldest)
        yield "linux"  # built on such a machine, and not said to run elsewhere

    def __str__(self) -> str:
        return f"Python {self.python} on {self.machine} with glibc {self.glibc}"


def manylinux_glibc(policy: str) -> str | None:
    """The C library that a tag promises to be enough, ``2.17`` of ``manylinux2014`` or ``manylinux_2_17_x86_64``; None
    where it promises nothing, as ``linux_x86_64``."""
    found = re.match(r"manylinux_2_(\d+)(?!\d)", policy)
    minor = int(found[1]) if found else next((n for name, n in _NAMED.items() if policy.startswith(name)), None)
    return None if minor is None else f"2.{minor}"
