"""Which formats there are, and what a format is.

A format is a module of this package with an entry in :data:`FORMATS`; nothing else knows its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from lram_export.bundle.bundle import Bundle
from lram_export.errors import UsageError, describe
from lram_export.system import telemetry

Arrays = Mapping[str, NDArray[Any]]
"""Arrays by the bundle's own names of them."""

FORMATS = {
    "onnx-closed": "onnx_closed",
    "leapp": "leapp",
    "physicalai": "physicalai",
    "lerobot": "lerobot",
    "triton": "triton",
    "ovms": "ovms",
}
"""Format -> its module in this package."""

NAMES = ("state", "memory", "packed")
"""How the inputs and outputs of an ONNX file are called. ``state``: ``state.X`` and ``next_state.X``, as in bundles.
``memory``: ``memory.X.in`` and ``memory.X.out``, by which exploy finds what to hand back. ``packed``: ``obs``,
``h_in``, ``actions`` and ``h_out``, the names of a GRU policy of rsl_rl and mjlab, with all states in one tensor."""

BACKENDS = ("onnx", "python")
"""What Triton runs: the closed step in its ONNX Runtime backend, or the bundle itself in its Python backend."""
MOST_SEQUENCES = 1 << 20
EXTRAS = {"openvino": "openvino"}
"""Package -> the extra that brings it, if not `convert`."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user asks of a format beside its name; what is None or False was not asked for.

    Attributes:
        names: how inputs and outputs are called, one of :data:`NAMES`.
        reward_input: whether the reward of the step before is an input.
        backend: what a server runs, one of :data:`BACKENDS`.
        target: which of the bundle's targets a server runs.
        max_batch: rows of a server's batch at most.
        sequences: episodes that a server keeps the state of at a time.
        idle: seconds after which a server ends an episode that nobody asks about.
        stateless: whether the state goes to the server and back with every step.
    """

    names: str | None = None
    reward_input: bool = False
    backend: str | None = None
    target: str | None = None
    max_batch: int | None = None
    sequences: int | None = None
    idle: float | None = None
    stateless: bool = False

    @property
    def given(self) -> list[str]:
        """What was asked for, as a user says it."""
        asked = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) not in (None, False)]
        return [f"--{name.replace('_', '-')}" for name in asked]

    def check(self, name: str, taken: Sequence[str]) -> None:
        """Raise UsageError for an option that the format of this name does not take."""
        for option in self.given:
            if option[2:].replace("-", "_") not in taken:
                raise UsageError(f"{option}: --to {name} has no such choice; leave it out")


class Player(Protocol):
    """Runs what was written, one robot, as its users do.

    Attributes:
        target: the target of the bundle that it is made of, whose actions it is held to.
        exact: whether it computes just what the target does. If not, an action that is chosen from scores may be
            another one where those were tied, as between any two targets.
        inputs: what a user gives with every step, by the names in the format.
        outputs: what comes out for the robot, likewise.
        states: what a user hands back, likewise.
    """

    target: str
    exact: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    states: tuple[str, ...]

    def start(self, state: float | None = None) -> None:
        """Begin an episode as users do, or with a state that is this number everywhere."""

    def step(self, given: Arrays) -> dict[str, NDArray[Any]]:
        """The actions for an observation (and a reward, where that is an input), with rows: all that the format has."""


class Format(Protocol):
    """A module of this package.

    Attributes:
        OPTIONS: which of :class:`Options` it takes.
        PACKAGES: what has to be installed for it, beside this package.
    """

    OPTIONS: tuple[str, ...]
    PACKAGES: tuple[str, ...]

    def marker(self, path: Path) -> str | None:
        """Of a folder, the file by which one of this format is known; None: the output is a file."""

    def write(self, bundle: Bundle, path: Path, options: Options) -> Callable[[], Player]:
        """Write to an empty file or folder; returns what opens it to replay it.

        Raises:
            UsageError: the format cannot take this policy, and what would work.
            BundleError: a damaged bundle.
        """


def find_format(name: str) -> Format:
    """The module of a format; raises UsageError for one that is not known, or needs what is not installed."""
    if name not in FORMATS:
        raise UsageError(f"--to: unknown format '{name}'; known: {', '.join(FORMATS)}")
    found = cast(Format, import_module(f"lram_export.conversion.{FORMATS[name]}"))
    need(name, found.PACKAGES)
    return found


def need(name: str, packages: Sequence[str]) -> None:
    """Raise UsageError unless these packages load, which a format of this name needs."""
    telemetry.switch_off()
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            extras = ",".join(dict.fromkeys(["convert", EXTRAS.get(package, "convert")]))
            raise UsageError(
                f"--to {name}: needs the package '{package}', which does not load ({describe(error)}). "
                f"Install it with: pip install 'lram-export[{extras}]'"
            ) from None
