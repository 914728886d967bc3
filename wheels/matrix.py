"""Which wheels and libraries there are, and how each of them is called."""

from __future__ import annotations

from dataclasses import dataclass

STABLE = "3.12"
"""Its wheel serves every later Python: the first whose stable ABI has what nanobind needs."""

PYTHONS = ("3.10", "3.11", STABLE)
MACHINES = ("x86_64", "aarch64")

KERNELS = {
    "x86_64": ("avx512amx", "avx512vnni", "avx512", "avx2vnni", "avx2", "plain"),
    "aarch64": ("neondot", "neon", "plain"),
}
"""What `LRAM_ISA` may say there; a compiler that does not know one of them leaves it out, and no wheel may lack it."""


class WheelError(Exception):
    """Why there are no wheels, in one line."""


@dataclass(frozen=True)
class Library:
    """The engine for C and C++, for one processor: ``aarch64``."""

    machine: str

    @property
    def policy(self) -> str:
        """Every Linux with glibc 2.17 or later."""
        return f"manylinux2014_{self.machine}"

    @property
    def target(self) -> str:
        """The same, as zig has it."""
        return f"{self.machine}-linux-gnu.2.17"

    def __str__(self) -> str:
        return f"liblram-{self.policy}"


@dataclass(frozen=True)
class Build:
    """One wheel: ``3.11``, ``aarch64``."""

    python: str
    machine: str

    @property
    def stable(self) -> bool:
        """Whether it is compiled against the stable ABI."""
        return self.python == STABLE

    @property
    def interpreter(self) -> str:
        """``cp311``, as tags have it."""
        return "cp" + self.python.replace(".", "")

    @property
    def tags(self) -> str:
        """Python and ABI in the name of the wheel."""
        return f"{self.interpreter}-{'abi3' if self.stable else self.interpreter}"

    @property
    def suffix(self) -> str:
        """How the name of a compiled module ends on that machine."""
        return ".abi3.so" if self.stable else f".cpython-{self.interpreter[2:]}-{self.machine}-linux-gnu.so"

    @property
    def library(self) -> Library:
        """What is compiled for the same processor without Python."""
        return Library(self.machine)

    @property
    def policy(self) -> str:
        """Every Linux with glibc 2.17 or later."""
        return self.library.policy

    def __str__(self) -> str:
        return f"{self.tags}-{self.policy}"


def builds(pythons: tuple[str, ...] = PYTHONS, machines: tuple[str, ...] = MACHINES) -> list[Build]:
    """All of them, those of one Python together."""
    return [Build(python, machine) for python in pythons for machine in machines]
