"""What evaluations know of the task table's domains: tasks that were held out of training, published scores.

``domains.json`` has per domain the tasks that the authors of the published models held out, and per task the score of a
random policy and the one that counts as 1: of the domain's own kind, ``human`` (a person who plays the game) or
``data`` (the training data), with the source of the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from lram_export.rollouts.environments import domain_task
from lram_export.spec.tasks import task_table


class Scale(NamedTuple):
    """The scores of a task that are 0 and 1."""

    random: float
    expert: float

    def normalized(self, score: float) -> float:
        """0 for the random policy, 1 for the expert."""
        return (score - self.random) / (self.expert - self.random)


@dataclass(frozen=True)
class Domain:
    """A domain of the table.

    Attributes:
        name: as in the table; the family of environments has it, too.
        trained: its tasks in the table.
        held_out: tasks of which no episode was in the training data.
        kind: what a score of 1 is: ``human`` or ``data``.
        source: of the scales.
        reward_scale: the table's.
    """

    name: str
    trained: tuple[str, ...]
    held_out: tuple[str, ...]
    kind: str
    source: str
    reward_scale: float
    scales: dict[str, Scale]


@cache
def domains() -> dict[str, Domain]:
    """All domains, in the table's order."""
    text = files("lram_export").joinpath("rollouts/domains.json").read_text(encoding="utf-8")
    told: dict[str, dict[str, Any]] = json.loads(text)
    return {
        name: Domain(
            name=name,
            trained=tuple(row["target_returns"]),
            held_out=tuple(told[name]["held_out"]),
            kind=told[name]["scale"],
            source=told[name]["source"],
            reward_scale=float(row["reward_scale"]),
            scales={task: Scale(*pair) for task, pair in told[name]["scores"].items()},
        )
        for name, row in task_table().items()
    }


def domain_of(environment: str) -> Domain | None:
    """The domain of ``family/task``; None for a task that neither the table nor its held-out tasks have."""
    name, task = domain_task(environment)
    domain = domains().get(name)
    return domain if domain is not None and task in (*domain.trained, *domain.held_out) else None


def scale_of(environment: str) -> Scale | None:
    """The published scores of a task; None where there are none."""
    domain = domain_of(environment)
    return None if domain is None else domain.scales.get(domain_task(environment)[1])


def tasks_of(domain: Domain, *, held_out: bool) -> Sequence[str]:
    """Names of tasks, those in the table and perhaps the others."""
    return (*domain.trained, *(domain.held_out if held_out else ()))
