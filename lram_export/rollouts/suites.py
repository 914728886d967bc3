"""Lists of environments to judge a policy in: the task table's domains by name, or a file of one's own."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lram_export.errors import UsageError
from lram_export.interface_file import parse_yaml
from lram_export.rollouts.domains import Domain, domain_of, domains, tasks_of
from lram_export.rollouts.environments import UnknownEnvironment, check_family
from lram_export.spec.bounds import MOST_FLOAT32, SMALLEST_SCALE
from lram_export.spec.json_fields import Fields, shown

ALL = "lram"
SUFFIXES = (".yaml", ".yml", ".json")
MOST_ENVIRONMENTS = 100_000
MOST_EPISODES = 1_000_000


@dataclass(frozen=True)
class Wanted:
    """An environment, and what is wanted of it in place of what is wanted of all.

    Attributes:
        environment: ``family/task``.
        target_return: in the environment's units; None: the task table's, else the bundle's.
        reward_scale: divisor of return-to-go and rewards; None: the bundle's.
        episodes: how many; None: as many as of the others.
        command: what makes it, in a process of its own; None: the family's own way.
    """

    environment: str
    target_return: float | None = None
    reward_scale: float | None = None
    episodes: int | None = None
    command: str | None = None


@dataclass(frozen=True)
class Suite:
    """Environments with a name."""

    name: str
    wanted: tuple[Wanted, ...]


@cache
def named_suites() -> dict[str, Suite]:
    """Those of the task table, named after their domain and how many there are: ``metaworld-45``, ``metaworld-50``.

    The smaller one has the tasks of the table, the larger one those that the authors held out, too.
    """
    found: dict[str, list[Wanted]] = {}
    everything: list[Wanted] = []
    for domain in domains().values():
        for held_out in (False, True):
            tasks = tuple(_wanted(domain, held_out=held_out))
            found[f"{domain.name}-{len(tasks)}"] = list(tasks)
        everything += _wanted(domain, held_out=False)
    found[f"{ALL}-{len(everything)}"] = everything
    return {name: Suite(name, tuple(wanted)) for name, wanted in found.items()}


def _wanted(domain: Domain, *, held_out: bool) -> Iterator[Wanted]:
    for task in tasks_of(domain, held_out=held_out):
        yield Wanted(f"{domain.name}/{task}", reward_scale=domain.reward_scale)


def find_suite(name: str) -> Suite:
    """A suite by its name, or from a file.

    Raises:
        UsageError: no such suite (with the nearest), or a file that cannot be read or says something wrong.
    """
    if name.endswith(SUFFIXES):
        return read_suite(Path(name))
    known = named_suites()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"Nearest: {', '.join(near)}" if near else f"There are: {', '.join(known)}"
        raise UsageError(f"--suite: unknown suite '{name}'. {hint}; a file of your own ends with .yaml")
    return known[name]


def read_suite(path: Path) -> Suite:
    """A suite of one's own: ``environments``, names or what is wanted of them; perhaps ``name`` and ``episodes``.

    Raises:
        UsageError: naming the file and the field.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--suite: {path}: {error.strerror}") from None
    try:
        return _suite(Fields.of(parse_yaml(content, "--suite"), ""), path.stem)
    except ValueError as error:
        raise UsageError(f"--suite: {path}: {error}") from None


def _suite(fields: Fields, stem: str) -> Suite:
    _known(fields, ("environments", "name", "episodes"))
    name = fields.text("name") if "name" in fields.data else stem
    episodes = _episodes(fields)
    listed = fields.items("environments", MOST_ENVIRONMENTS)
    if not listed:
        raise ValueError("environments: expected at least one")
    found: dict[str, Wanted] = {}
    for number, entry in enumerate(listed):
        where = f"environments[{number}]"
        wanted = _entry(entry, where, episodes)
        if wanted.environment in found:
            raise ValueError(f"{where}: {wanted.environment} is there twice")
        found[wanted.environment] = wanted
    return Suite(name, tuple(found.values()))


def _entry(entry: object, where: str, episodes: int | None) -> Wanted:
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected FAMILY/TASK, or name: FAMILY/TASK with more, got {shown(entry)}")
    fields = Fields.of(entry, where)
    _known(fields, ("name", "target_return", "reward_scale", "episodes", "command"))
    name = fields.text("name")
    command = fields.text("command") if "command" in entry else None
    try:
        check_family(name, fields.path("name"))
    except UnknownEnvironment as error:
        raise ValueError(str(error)) from None
    own = _episodes(fields)
    scale = fields.number("reward_scale", SMALLEST_SCALE, MOST_FLOAT32) if "reward_scale" in entry else None
    domain = domain_of(name)
    return Wanted(
        environment=name,
        target_return=fields.number("target_return") if "target_return" in entry else None,
        reward_scale=scale if scale is not None or domain is None else domain.reward_scale,
        episodes=episodes if own is None else own,
        command=command,
    )


def _episodes(fields: Fields) -> int | None:
    return fields.integer("episodes", 1, MOST_EPISODES) if "episodes" in fields.data else None


def _known(fields: Fields, names: tuple[str, ...]) -> None:
    for key in fields.data:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
            raise ValueError(f"{fields.path(str(key))}: unknown field; {hint}")
