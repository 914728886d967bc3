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
_GLIBCXX = {17: 19, 27: 25, 31: 28, 35: 30, 39: 33}
"""N of glibc 2.N -> n of GLIBCXX_3.4.n, the newest symbols of the libstdc++ that came with it: CentOS 7, Ubuntu 18.04
(and Debian 10), 20.04 (Debian 11), 22.04 (Debian 12), 24.04."""
_CXXABI = {8: 20, 9: 21, 10: 22, 11: 23, 12: 26, 13: 29, 14: 31, 15: 33, 16: 34}
"""N of CXXABI_1.3.N -> n of GLIBCXX_3.4.n in the first libstdc++ that has it: GCC 4.9, 5, 6, 7, 9, 11, 13, 14, 15."""
_NAMED = {"manylinux2014": 17, "manylinux2010": 12, "manylinux1": 5}
"""Older names of such tags, and the N they stand for."""


@dataclass(frozen=True)
class Robot:
    """A machine with a Python.

    Attributes:
        machine: what `uname -m` says.
        python: its minor version, ``3.10``.
        glibc: the version of its C library, or an older one, ``2.31``.
        glibcxx: the newest symbols of its C++ library, GCC's, or older ones, ``3.4.28``; "": those that Debian and
            Ubuntu have beside that C library.

    Raises:
        UsageError: no such version, or one that lram-export does not run on.
    """

    machine: str
    python: str
    glibc: str = GLIBC
    glibcxx: str = ""

    def __post_init__(self) -> None:
        found = re.fullmatch(r"3\.(\d{1,2})", self.python)
        if not found or (3, int(found[1])) < _OLDEST_PYTHON:
            raise UsageError(
                f"--python: expected 3.10 or a later one, such as 3.12, got '{self.python}'; where there is none, "
                f"--language c makes a kit that needs no Python"
            )
        if not re.fullmatch(r"2\.\d{1,2}", self.glibc) or self.minor_glibc < _OLDEST_GLIBC["aarch64"]:
            raise UsageError(f"--glibc: expected 2.17 or a later one, such as 2.35, got '{self.glibc}'")
        if not re.fullmatch(r"(3\.4\.\d{1,2})?", self.glibcxx):
            raise UsageError(f"--glibcxx: expected a version such as 3.4.30, got '{self.glibcxx}'")

    @staticmethod
    def of(
        machine: str | None = None, python: str | None = None, glibc: str | None = None, glibcxx: str | None = None
    ) -> Robot:
        """One that is like this machine in what is not told."""
        here = ".".join(map(str, sys.version_info[:2]))
        return Robot(machine or platform.machine(), python or here, glibc or GLIBC, glibcxx or "")

    @property
    def minor_glibc(self) -> int:
        """31 of ``2.31``."""
        return int(self.glibc.partition(".")[2])

    @property
    def minor_glibcxx(self) -> int:
        """28 of ``3.4.28``."""
        if self.glibcxx:
            return int(self.glibcxx.rpartition(".")[2])
        return next(n for minor, n in reversed(_GLIBCXX.items()) if minor <= self.minor_glibc)

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


def glibcxx_of_abi(minor: int) -> int:
    """The n of the first GLIBCXX_3.4.n whose library has CXXABI_1.3.``minor``; of one not known here, at least that."""
    newest = max(_CXXABI)
    return _CXXABI.get(minor, 0) if minor <= newest else _CXXABI[newest] + minor - newest
