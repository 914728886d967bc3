"""What a node says of itself, and why it cannot work with this machine; asked once, before work starts."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field

from lram_export.system.machine import cpu_features, cpu_model
from lram_export.version import __version__


@dataclass(frozen=True)
class NodeFacts:
    """``versions`` by name, of Python, Ray, lram-export and whatever a job's results depend on; ``unfit`` why it cannot
    do the job, in one line; the processor, whose instructions may round otherwise."""

    versions: Mapping[str, str] = field(default_factory=dict)
    unfit: str | None = None
    cpu: str = ""
    features: tuple[str, ...] = ()


def facts_here(versions: Mapping[str, str], unfit: str | None = None) -> NodeFacts:
    """This machine, for a job of those versions."""
    import ray

    own = {"Python": platform.python_version(), "Ray": ray.__version__, "lram-export": __version__}
    return NodeFacts({**own, **versions}, unfit, cpu_model(), cpu_features())


def objection(here: NodeFacts, there: NodeFacts) -> str | None:
    """Why a node cannot work with this machine, in one line; None if it can. The first version that differs is named,
    then what the node cannot do."""
    for name, version in here.versions.items():
        found = there.versions.get(name)
        if found is None:
            return f"{name} is not installed there; {version} is here"
        if found != version:
            return f"{name} is {found} there and {version} here; install the same, as results depend on it"
    return there.unfit


def other_processor(here: NodeFacts, there: NodeFacts) -> str | None:
    """What differs of a node's processor, where results may differ in their last bits for it."""
    if here.features == there.features:
        return None
    return f"another processor ({there.cpu}), whose results may differ in the last bits"
