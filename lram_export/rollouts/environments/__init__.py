"""Environments a bundle is judged in: names, what they need, and how they are made to fit a policy.

An environment is named ``family/task``. Each family is one module with ``make(task, render_mode)``, which
returns a Gymnasium environment, and ``names()``; nothing is imported before it is asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lram_export.errors import UsageError
from lram_export.spec.tasks import task_table

if TYPE_CHECKING:
    import gymnasium

EXTRA = "evaluate"


@dataclass(frozen=True)
class Family:
    """A family of environments: the module that makes them, what it needs, its domain in the task table, and
    whether MuJoCo draws its pictures."""

    module: str
    packages: tuple[str, ...]
    domain: str | None = None
    mujoco: bool = False


FAMILIES = {
    "metaworld": Family("metaworld", ("gymnasium", "metaworld"), "metaworld", mujoco=True),
    "dm_control": Family("dm_control", ("gymnasium", "dm_control", "shimmy"), mujoco=True),
    "dmcontrol": Family("dm_control_padded", ("gymnasium", "dm_control", "shimmy"), "dmcontrol", mujoco=True),
    "atari": Family("atari", ("gymnasium", "ale_py", "cv2"), "atari"),
    "gym": Family("gym", ("gymnasium",)),
}


def open_environment(name: str, *, render: bool = False) -> gymnasium.Env[Any, Any]:
    """Make the Gymnasium environment ``family/task``.

    Raises:
        UsageError: no such family or task (with the nearest), or a package is missing (with the extra's name).
    """
    family, _, task = name.partition("/")
    check_packages(name)
    if render:
        prepare_drawing([name])
    module = import_module(f"lram_export.rollouts.environments.{FAMILIES[family].module}")
    known = module.names()
    wanted = module.canonical(task) if hasattr(module, "canonical") else task
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
        hint = (
            f"Nearest: {', '.join(f'{family}/{n}' for n in near)}" if near else f"There are {len(known)} in '{family}'"
        )
        raise UsageError(f"--env: unknown environment '{name}'. {hint}")
    made: gymnasium.Env[Any, Any] = module.make(wanted, "rgb_array" if render else None)
    return made


def check_packages(name: str) -> None:
    """Raise UsageError for a name of no family, or one whose family's packages are not installed here."""
    family, _, task = name.partition("/")
    if family not in FAMILIES or not task:
        raise UsageError(f"--env: unknown environment '{name}'; expected {', '.join(f'{f}/TASK' for f in FAMILIES)}")
    for package in FAMILIES[family].packages:
        if find_spec(package) is None:
            raise UsageError(
                f"--env {name}: needs the package '{package}', which is not installed. "
                f"Install it with: pip install 'lram-export[{EXTRA}]'"
            )


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """Versions of the packages that environments come from, by package; what is not installed is not in it."""
    families = [FAMILIES[family] for family in {name.partition("/")[0] for name in names} if family in FAMILIES]
    found = {}
    for package in sorted({package for family in families for package in family.packages}):
        distributions = packages_distributions().get(package, ())
        if distributions:
            found[package] = version(distributions[0])
    return found


def registered_here(names: Sequence[str]) -> dict[str, bytes]:
    """Environments of Gymnasium's registry by id, for :func:`register` in a process that has not registered them.

    Raises:
        UsageError: one whose making cannot be handed to another process.
    """
    own = [task for family, _, task in (name.partition("/") for name in names) if family == "gym"]
    if not own or find_spec("gymnasium") is None:
        return {}
    module = import_module("lram_export.rollouts.environments.gym")
    return {task: module.packed(task) for task in own if task in module.names()}


def register(packed: Mapping[str, bytes]) -> None:
    """Register what :func:`registered_here` gave elsewhere, as far as it is not registered here."""
    if packed:
        import_module("lram_export.rollouts.environments.gym").register(packed)


def prepare_drawing(names: Sequence[str]) -> None:
    """Choose how MuJoCo draws, where it does; before the first environment is made, which settles it.

    Raises:
        UsageError: there is no way to draw here.
    """
    from lram_export.rollouts.environments.rendering import choose_backend

    if any(FAMILIES[family].mujoco for family in (n.partition("/")[0] for n in names) if family in FAMILIES):
        choose_backend()


def table_target_return(name: str) -> float | None:
    """The task table's target return for an environment, where the table has the task."""
    family, _, task = name.partition("/")
    domain = FAMILIES[family].domain if family in FAMILIES else None
    if domain is None:
        return None
    # the table's Meta-World names are of the package's former version
    listed: dict[str, float | None] = task_table()[domain]["target_returns"]
    return listed.get(task.removesuffix("-v3") + "-v2" if domain == "metaworld" and task.endswith("-v3") else task)
