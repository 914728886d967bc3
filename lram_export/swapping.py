"""Another bundle in place of the one that runs: when it may, and how to load it from a folder that is replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from lram_export.bundle.manifest import MANIFEST_FILE
from lram_export.errors import BundleError, LramError, UsageError
from lram_export.spec.interface import Interface
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import StepSpec, TensorSpec
from lram_export.system.files import open_regular

TRIES = 10
"""How often a folder may be replaced while it is loaded."""


class Closable(Protocol):
    """What was loaded."""

    def close(self) -> None:
        """Free what it holds."""


Loaded = TypeVar("Loaded", bound=Closable)


def load_settled(path: Path, load: Callable[[], Loaded]) -> Loaded:
    """Load a bundle whose folder others may replace meanwhile, all of it from the same one.

    A manifest names the hash of every file: if it is the same before and after, so was everything in between.

    Raises:
        LramError: what ``load`` raises, where the folder was not replaced.
        BundleError: it was, again and again.
    """
    for _ in range(TRIES):
        before = _manifest(path)
        try:
            loaded = load()
        except LramError:
            if _manifest(path) == before:
                raise
            continue
        if _manifest(path) == before:
            return loaded
        loaded.close()
    raise BundleError(f"{path}: replaced {TRIES} times while it was loaded; try again when it stays")


def check_same_interface(
    path: Path, spec: StepSpec, task: TaskSpec | None, new_spec: StepSpec, new_task: TaskSpec | None
) -> None:
    """Raise UsageError, naming the first difference, unless a control loop can go on with what ``path`` holds."""
    _check(path, "batch size", spec.batch_size, new_spec.batch_size)
    for kind, own, new in (("input", spec.inputs, new_spec.inputs), ("output", spec.outputs, new_spec.outputs)):
        _check(path, f"{kind}s", [t.name for t in own], [t.name for t in new])
        for one, other in zip(own, new, strict=True):
            _check(path, f"{kind} {one.name}", _shown(one), _shown(other))
    for name in ("reward_scale", "reward_feedback"):
        _check(path, name, getattr(task, name, None), getattr(new_task, name, None))


def check_same_robot(path: Path, own: Interface, new: Interface) -> None:
    """Raise UsageError, naming the first difference, where two policies say different things of their robot.

    How each makes numbers fit for its network is its own affair; what one of them does not say is not compared.
    """
    if None not in (own.rate, new.rate):
        _check(path, "rate", own.rate, new.rate)
    for side in ("observation", "action"):
        ours, theirs = getattr(own, side), getattr(new, side)
        for name in (name for name in ours if name in theirs):
            for part in ("elements", "units", "image"):
                one, other = getattr(ours[name], part), getattr(theirs[name], part)
                if None not in (one, other):
                    _check(path, f"{part} of {name}", one, other)


def _check(path: Path, name: str, own: object, new: object) -> None:
    if own != new:
        raise UsageError(f"{path}: {name}: expected {own}, as in the policy that runs, got {new}; load it by itself")


def _shown(tensor: TensorSpec) -> str:
    return f"{tensor.dtype} of shape {tensor.shape}"


def _manifest(path: Path) -> bytes | None:
    """What the manifest is now; None where there is none."""
    try:
        with open_regular(path / MANIFEST_FILE) as file:
            return file.readall()
    except OSError:
        return None
