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

from lram_export.errors import EnvironmentFailure, LramError, UsageError
from lram_export.spec.tasks import task_table

if TYPE_CHECKING:
    import gymnasium

EXTRA = "evaluate"


PATIENCE = 300.0
"""Seconds that a process which makes an environment may take for one answer."""
COMMAND = "command"
"""The family that has no way of its own to make an environment: another process does."""


class UnknownEnvironment(UsageError):
    """A name that no family, or no task of a family, has."""


@dataclass(frozen=True)
class Family:
    """A family of environments.

    Attributes:
        module: makes them; None where there is none for this process: another one makes them, by a command.
        packages: what that needs.
        domain: in the task table.
        mujoco: whether MuJoCo draws its pictures.
        extra: whether the packages are those of an extra of this one; else they are its user's to install.
    """

    module: str | None
    packages: tuple[str, ...]
    domain: str | None = None
    mujoco: bool = False
    extra: bool = True


FAMILIES = {
    "metaworld": Family("metaworld", ("gymnasium", "metaworld"), "metaworld", mujoco=True),
    "dm_control": Family("dm_control", ("gymnasium", "dm_control", "shimmy"), mujoco=True),
    "dmcontrol": Family("dm_control_padded", ("gymnasium", "dm_control", "shimmy"), "dmcontrol", mujoco=True),
    "atari": Family("atari", ("gymnasium", "ale_py", "cv2"), "atari"),
    "gym": Family("gym", ("gymnasium",)),
    "procgen": Family("procgen", ("gymnasium", "procgen"), "procgen", extra=False),
    "robosuite": Family("robosuite", ("gymnasium", "robosuite"), mujoco=True, extra=False),
    "composuite": Family(
        "composuite", ("gymnasium", "robosuite", "composuite"), "composuite", mujoco=True, extra=False
    ),
    "mimicgen": Family("mimicgen", ("gymnasium", "robosuite", "mimicgen"), "mimicgen", mujoco=True, extra=False),
    COMMAND: Family(None, ()),
}


def open_environment(
    name: str, *, render: bool = False, command: str | None = None, patience: float = PATIENCE
) -> gymnasium.Env[Any, Any]:
    """Make the Gymnasium environment ``family/task``; with a command, in the process that it starts.

    Raises:
        UnknownEnvironment: no such family or task (with the nearest).
        UsageError: a package is missing (with the extra's name), or a family that needs a command has none.
        EnvironmentFailure: it cannot be made.
    """
    check_family(name, "--env")
    family, _, task = name.partition("/")
    if command is not None:
        from lram_export.rollouts.environments.command import CommandEnv

        return CommandEnv(name, command, render=render, patience=patience)
    found = FAMILIES[family]
    check_packages(name)
    if render:
        prepare_drawing([name])
    try:
        module = import_module(f"lram_export.rollouts.environments.{found.module}")
        known = module.names()
    except LramError:
        raise
    except Exception as error:  # of foreign packages, which may not fit one another
        raise EnvironmentFailure.of(name, "its import", error) from error
    wanted = module.canonical(task) if hasattr(module, "canonical") else task
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
        hint = (
            f"Nearest: {', '.join(f'{family}/{n}' for n in near)}" if near else f"There are {len(known)} in '{family}'"
        )
        raise UnknownEnvironment(f"--env: unknown environment '{name}'. {hint}")
    try:
        made: gymnasium.Env[Any, Any] = module.make(wanted, "rgb_array" if render else None)
    except LramError:
        raise
    except Exception as error:
        raise EnvironmentFailure.of(name, "its making", error) from error
    return made


def check_family(name: str, where: str) -> None:
    """Raise UnknownEnvironment, with the nearest family, unless a name is ``family/task`` of a known family."""
    family, _, task = name.partition("/")
    if family in FAMILIES and task:
        return
    near = difflib.get_close_matches(family, FAMILIES, n=1) if task else []
    hint = f". Nearest: {near[0]}/{task}" if near else f"; expected {', '.join(f'{f}/TASK' for f in FAMILIES)}"
    raise UnknownEnvironment(f"{where}: unknown environment '{name}'{hint}")


def check_packages(name: str) -> None:
    """Raise UsageError for a name of no family, one whose family's packages are not installed here, or one of a family
    that only another process can make."""
    check_family(name, "--env")
    family = name.partition("/")[0]
    found = FAMILIES[family]
    if found.module is None:
        raise UsageError(
            f"--env {name}: another process has to make it; say how with --env-command {family}=COMMAND "
            f"(docs/suites.md)"
        )
    for package in found.packages:
        if find_spec(package) is None:
            how = (
                f"Install it with: pip install 'lram-export[{EXTRA}]'"
                if found.extra
                else (f"Install it, or let another Python have it: --env-command {family}=COMMAND (docs/suites.md)")
            )
            raise UsageError(f"--env {name}: needs the package '{package}', which is not installed. {how}")


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
    domain, task = domain_task(name)
    listed: dict[str, float | None] = task_table()[domain]["target_returns"] if domain else {}
    return listed.get(task)


def domain_task(name: str) -> tuple[str, str]:
    """Domain and task, as the task table writes them, of an environment; no domain: an empty one."""
    family, _, task = name.partition("/")
    domain = FAMILIES[family].domain if family in FAMILIES else None
    if domain == "metaworld" and task.endswith("-v3"):
        task = task.removesuffix("-v3") + "-v2"  # the table's names are of the package's former version
    return domain or "", task
