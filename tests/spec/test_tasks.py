"""The task table, and how options complete it."""

from __future__ import annotations

import pytest

from lram_export.errors import UsageError
from lram_export.spec.tasks import TaskSpec, resolve_task, task_names, task_table


def test_the_table_has_the_432_tasks_of_the_training_mixture() -> None:
    assert len(task_names()) == len(set(task_names())) == 432
    scales = {domain: row["reward_scale"] for domain, row in task_table().items()}
    assert scales == {"metaworld": 200, "dmcontrol": 100, "procgen": 1, "atari": 20, "composuite": 1, "mimicgen": 1}


@pytest.mark.parametrize("name", task_names()[::7])
def test_every_task_resolves_once_its_gaps_are_filled(name: str) -> None:
    row = task_table()[name.split("/")[0]]
    state = row["observation"] == "state"
    task = resolve_task(name, target_return=1.5, observation_dim=10 if state else None, action_dim=2 if state else None)
    assert task.reward_scale == row["reward_scale"] and task.target_return == 1.5
    assert TaskSpec.from_json(task.to_json()) == task


def test_metaworld_needs_nothing_more() -> None:
    task = resolve_task("metaworld/reach-v2")
    assert (task.observation_dim, task.action_dim, task.target_return) == (39, 4, 1905.1067)


def test_an_unknown_target_return_is_asked_for() -> None:
    unknown = next(
        f"{domain}/{task}"
        for domain, row in task_table().items()
        for task, target in row["target_returns"].items()
        if target is None
    )
    with pytest.raises(UsageError, match=r"--target-return: the task table has none for"):
        resolve_task(unknown, observation_dim=10, action_dim=7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward_scale": 0}, "reward_scale: expected a positive number"),
        ({"observation": "sound"}, "observation: expected one of state, image"),
        ({"action_dim": 0}, "task.action_dim: expected 1 to 1024, got 0"),
        ({"action_dim": True}, "task.action_dim: expected an integer, got True"),
        ({"action_dim": 10**9}, "task.action_dim: expected 1 to 1024"),
        ({"observation_dim": 2.5}, "task.observation_dim: expected an integer"),
        ({"target_return": 1e300}, "task.target_return: expected a number from .* to .*e.38, got 1e.300"),
        ({"target_return": 1e38, "reward_scale": 1e-5}, "task.target_return: .*after division by the reward scale"),
        ({"reward_scale": 1e-50}, "task.reward_scale: expected a positive number that float32 holds"),
        ({"name": "a\nb"}, "task.name: expected at most 1000 printable characters"),
        ({"action_dim": "4"}, "task.action_dim: expected an integer"),
        ({"target_return": None}, "task.target_return: expected a number"),
        ({"extra": 1}, "task.extra: unknown field"),
    ],
)
def test_json_of_a_task_is_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskSpec.from_json({**resolve_task("metaworld/reach-v2").to_json(), **change})
