"""What a policy is asked to do: observation, action, target return, reward scale.

The table in ``tasks.json`` holds the 432 tasks of the LRAM training mixture with their predefined
target returns (null: unknown) and, per domain, the reward scale. ``observation_dim`` and ``action_dim``
are listed where they are the same for all tasks of a domain.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

from lram_export.errors import UsageError
from lram_export.spec.bounds import MOST_ACTIONS, MOST_FLOAT32, MOST_OBSERVATION, SMALLEST_SCALE
from lram_export.spec.json_fields import Fields, check_text, whole_number

ObservationKind = Literal["state", "image"]
ActionKind = Literal["continuous", "discrete"]
RewardFeedback = Literal["none", "observed"]


@dataclass(frozen=True)
class TaskSpec:
    """One task, complete: everything the step API needs besides the weights.

    Attributes:
        name: ``domain/task``, or ``custom``.
        observation: ``state`` (a float32 vector) or ``image`` (uint8, channels first).
        observation_dim: length of the state vector; None for images.
        action: ``continuous`` (``action_dim`` values in [-1, 1)) or ``discrete`` (one integer).
        action_dim: number of action values; 1 for discrete actions.
        target_return: return-to-go at the start of an episode, in the environment's own units.
        reward_scale: divisor of return-to-go and rewards.
        reward_feedback: ``none`` (the reward token is always 0) or ``observed`` (it carries the reward of
            the previous step).
    """

    name: str
    observation: ObservationKind
    observation_dim: int | None
    action: ActionKind
    action_dim: int
    target_return: float
    reward_scale: float
    reward_feedback: RewardFeedback = "none"

    def __post_init__(self) -> None:
        """Check every field; raises ValueError naming it."""
        for name, choices in (
            ("observation", ObservationKind),
            ("action", ActionKind),
            ("reward_feedback", RewardFeedback),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name}: expected one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}")
        check_text(self.name, "name")
        if self.observation == "state":
            whole_number(self.observation_dim, "observation_dim", 1, MOST_OBSERVATION)
        elif self.observation_dim is not None:
            raise ValueError(f"observation_dim: expected none for images, got {self.observation_dim!r}")
        whole_number(self.action_dim, "action_dim", 1, 1 if self.action == "discrete" else MOST_ACTIONS)
        if not abs(self.target_return) <= MOST_FLOAT32:
            raise ValueError(f"target_return: expected a finite number that float32 holds, got {self.target_return!r}")
        if not SMALLEST_SCALE <= self.reward_scale <= MOST_FLOAT32:
            raise ValueError(f"reward_scale: expected a positive number that float32 holds, got {self.reward_scale!r}")
        if not abs(self.target_return / self.reward_scale) <= MOST_FLOAT32:
            raise ValueError(
                f"target_return: expected a finite number after division by the reward scale, "
                f"got {self.target_return!r} / {self.reward_scale!r}"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of :meth:`from_json`."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: object) -> TaskSpec:
        """Read what :meth:`to_json` wrote; raises ValueError naming the field that is wrong."""
        fields = Fields.of(data, "task")
        fields.only(*(f.name for f in dataclasses.fields(TaskSpec)))
        values = dict(fields.data)
        for name in ("target_return", "reward_scale"):
            values[name] = fields.number(name)
        try:
            return TaskSpec(**values)
        except ValueError as error:
            raise ValueError(f"task.{error}") from None


@cache
def task_table() -> dict[str, dict[str, Any]]:
    """The packaged table: domain -> reward_scale, observation, action, dims and ``target_returns``."""
    text = files("lram_export").joinpath("spec/tasks.json").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = json.loads(text)
    return table


def task_names() -> list[str]:
    """All task names as ``domain/task``."""
    return [f"{domain}/{task}" for domain, row in task_table().items() for task in row["target_returns"]]


def resolve_task(
    name: str | None = None,
    *,
    observation_dim: int | None = None,
    image: bool = False,
    action_dim: int | None = None,
    discrete: bool = False,
    target_return: float | None = None,
    reward_scale: float | None = None,
    reward_feedback: RewardFeedback = "none",
) -> TaskSpec:
    """Combine the task table with explicit options; explicit options win over the table.

    Raises:
        UsageError: unknown task (with the nearest names), or something that neither the table nor an
            option says, naming the option.
    """
    row = _table_row(name)
    observation: ObservationKind = "image" if image else row.get("observation", "state")
    if observation_dim is not None and observation == "image":
        raise UsageError("--observation-dim: an image task has none; leave out --observation-dim or --image")
    action: ActionKind = "discrete" if discrete else row.get("action", "continuous")
    if action == "discrete" and action_dim not in (None, 1):
        raise UsageError(f"--action-dim: a discrete action is one number, got {action_dim}")

    def known(option: str, given: Any, listed: Any) -> Any:
        value = listed if given is None else given
        if value is None:
            what = f"the task table has none for '{name}'" if name else "without --task it must be given"
            raise UsageError(f"{option}: {what}. Add {option}")
        return value

    if observation == "state":
        observation_dim = known("--observation-dim", observation_dim, row.get("observation_dim"))
    action_dim = 1 if action == "discrete" else known("--action-dim", action_dim, row.get("action_dim"))
    try:
        return TaskSpec(
            name=name or "custom",
            observation=observation,
            observation_dim=observation_dim,
            action=action,
            action_dim=action_dim,
            target_return=float(known("--target-return", target_return, row.get("target_return"))),
            reward_scale=float(known("--reward-scale", reward_scale, row.get("reward_scale"))),
            reward_feedback=reward_feedback,
        )
    except ValueError as error:
        raise UsageError(f"--{str(error).replace('_', '-', 1)}") from None


def _table_row(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    domain, _, task = name.partition("/")
    row = task_table().get(domain)
    if row is None or task not in row["target_returns"]:
        names = task_names()
        lowered = {n.lower(): n for n in names}
        near = [lowered[n] for n in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
        near += [n for n in names if n.rpartition("/")[2] == name and n not in near]
        hint = f"Nearest: {', '.join(near)}" if near else f"Domains: {', '.join(task_table())}"
        raise UsageError(f"--task: unknown task '{name}'. {hint}")
    return {**row, "target_return": row["target_returns"][task]}
