"""Where a policy runs: all that the bits of its actions depend on beside the artifact itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from lram_export.runtimes import RUNTIMES
from lram_export.system.machine import cpu_features, cpu_model
from lram_export.version import __version__


@dataclass(frozen=True)
class Place:
    """A processor and the software of a target.

    Attributes:
        machine: the processor, in words.
        features: its instruction sets that matter.
        software: lram-export and the packages of the target's runtime, with their versions.
    """

    machine: str
    features: str
    software: str


@cache
def here(target: str) -> Place:
    """This place, for a target; the first call takes milliseconds."""
    entry = RUNTIMES.get(target)
    versions = {"lram-export": __version__, **({} if entry is None else entry.versions())}
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Place(cpu_model(), " ".join(cpu_features()), software)
