"""Simulated environments: same seed, same episode; and they fit a bundle or say why not."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from lram_export.errors import UsageError
from lram_export.model.specification import step_spec
from lram_export.rollouts.environments import FAMILIES, open_environment, table_target_return
from lram_export.rollouts.environments.fitting import FittedEnvironment
from lram_export.spec.tasks import TaskSpec, resolve_task
from lram_export.spec.tensors import StepSpec
from tests.models import lram

MODEL = lram(hidden_size=32, num_blocks=1, num_heads=4, inner_size=64)
REACH = resolve_task("metaworld/reach-v2")
ATARI = dataclasses.replace(
    REACH, name="atari/pong", observation="image", observation_dim=None, action="discrete", action_dim=1
)
EXAMPLES = (
    "metaworld/drawer-close-v3",
    "dm_control/cartpole-swingup",
    "dmcontrol/cartpole-swingup",
    "atari/space-invaders",
)


def custom(observation_dim: int, action_dim: int) -> TaskSpec:
    return dataclasses.replace(REACH, name="custom", observation_dim=observation_dim, action_dim=action_dim)


def spec_of(task: TaskSpec) -> StepSpec:
    return step_spec(MODEL, task)


@pytest.mark.parametrize("name", [*EXAMPLES, "gym/Pendulum-v1"])
def test_an_episode_is_a_function_of_its_seed(name: str) -> None:
    environment = open_environment(name)

    def episode(seed: int) -> list[np.ndarray]:
        observation, _ = environment.reset(seed=seed)
        seen = [observation]
        rng = np.random.default_rng(0)
        for _ in range(20):
            space = environment.action_space
            action = int(rng.integers(space.n)) if isinstance(space, gymnasium.spaces.Discrete) else None
            if action is None:
                action = rng.uniform(space.low, space.high).astype(space.dtype)
            observation, *_ = environment.step(action)
            seen.append(observation)
        return seen

    first, other, again = episode(3), episode(4), episode(3)
    environment.close()
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_task_tables_name_is_the_packages_next_version() -> None:
    old, new = open_environment("metaworld/reach-v2"), open_environment("metaworld/reach-v3")
    assert np.array_equal(old.reset(seed=1)[0], new.reset(seed=1)[0])
    assert table_target_return("metaworld/reach-v3") == table_target_return("metaworld/reach-v2") == REACH.target_return
    assert table_target_return("gym/Pendulum-v1") is None


def test_metaworld_shows_its_goal_and_ends_after_200_steps() -> None:
    environment = open_environment("metaworld/reach-v3")
    observation, _ = environment.reset(seed=0)
    assert observation.shape == (39,)
    assert np.abs(observation[-3:]).max() > 0
    steps, truncated = 0, False
    while not truncated:
        *_, truncated, info = environment.step(np.zeros(4, np.float32))
        steps += 1
    assert steps == 200
    assert "success" in info


def test_dmcontrol_puts_observations_where_the_training_data_has_them() -> None:
    placed, _ = open_environment("dmcontrol/cartpole-swingup").reset(seed=0)
    flat, _ = open_environment("dm_control/cartpole-swingup").reset(seed=0)
    assert placed.shape == (204,)
    assert np.array_equal(placed[41:44], flat[:3])  # position
    assert np.array_equal(placed[14:16], flat[3:])  # velocity
    assert np.count_nonzero(placed) == np.count_nonzero(flat)


def test_every_dmcontrol_task_of_the_table_has_a_place() -> None:
    from lram_export.rollouts.environments import dm_control_padded
    from lram_export.spec.tasks import task_table

    assert set(task_table()["dmcontrol"]["target_returns"]) <= set(dm_control_padded.names())
    for name in dm_control_padded.names():
        environment = dm_control_padded.make(name, None)
        observation, _ = environment.reset(seed=0)
        assert observation.shape == (dm_control_padded.WIDTH,)
        spaces = environment.unwrapped.observation_space.spaces
        for kind, space in spaces.items():
            assert int(np.prod(space.shape)) <= dm_control_padded._WIDTHS[kind], (name, kind)


def test_a_game_prints_no_banner(capfd: pytest.CaptureFixture[str]) -> None:
    open_environment("atari/breakout").close()
    assert capfd.readouterr() == ("", "")


def test_atari_shows_the_grey_picture_three_times_with_all_actions() -> None:
    environment = open_environment("atari/breakout")
    observation, _ = environment.reset(seed=0)
    assert observation.shape == (3, 64, 64)
    assert observation.dtype == np.uint8
    assert observation.any()
    assert np.array_equal(observation[0], observation[2])
    assert environment.action_space == gymnasium.spaces.Discrete(18)
    assert {float(environment.step(1 + i % 4)[1]) for i in range(150)} <= {-1.0, 0.0, 1.0}


def test_shorter_observations_are_padded_with_zeros() -> None:
    fitted = FittedEnvironment(
        "gym/Pendulum-v1", open_environment("gym/Pendulum-v1"), spec_of(custom(5, 1)), custom(5, 1)
    )
    observation = fitted.reset(0)
    assert observation.shape == (5,)
    assert observation.dtype == np.float32
    assert observation[3:].tolist() == [0, 0]
    assert np.linalg.norm(observation[:2]) == pytest.approx(1)


def test_actions_are_scaled_to_the_environments_bounds() -> None:
    task = custom(3, 1)
    fitted = FittedEnvironment("gym/Pendulum-v1", open_environment("gym/Pendulum-v1"), spec_of(task), task)
    direct = open_environment("gym/Pendulum-v1")
    direct.reset(seed=0)
    fitted.reset(0)
    expected, *_ = direct.step(np.array([1.0], np.float32))  # of -2..2
    assert np.allclose(fitted.step(np.array([0.5], np.float32)).observation, expected)


@pytest.mark.parametrize(
    ("name", "task", "words"),
    [
        ("metaworld/reach-v3", custom(20, 4), ("39 values", "at most 20", "custom")),
        ("gym/Pendulum-v1", REACH, ("Box(-2.0, 2.0, (1,)", "4 values", "metaworld/reach-v2")),
        ("atari/pong", REACH, ("observations have 12288 values", "at most 39")),
        ("metaworld/reach-v3", ATARI, ("float64 of shape (39,)", "uint8 images of shape (3, 64, 64)")),
        ("gym/CartPole-v1", custom(4, 1), ("Discrete(2)", "1 values")),
        ("gym/CartPole-v1", dataclasses.replace(ATARI, observation="state", observation_dim=4), ("Discrete(2)", "18")),
        ("gym/Blackjack-v1", custom(4, 1), ("Tuple(", "Box of shape (4,)")),
    ],
)
def test_what_does_not_fit_is_refused_naming_both_sides(name: str, task: TaskSpec, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=f"--env {name}") as caught:
        FittedEnvironment(name, open_environment(name), spec_of(task), task)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("metaworld/reech-v3", "Nearest: metaworld/reach-v3"),
        ("gym/Pendulm-v1", "Nearest: gym/Pendulum-v1"),
        ("atari/brakout", "Nearest: atari/breakout"),
        ("moon/reach", "expected metaworld/TASK"),
        ("metaworld", "expected metaworld/TASK"),
        ("gym/zzzz", "There are"),
    ],
)
def test_unknown_environments_are_refused_with_the_nearest(name: str, words: str) -> None:
    with pytest.raises(UsageError, match="--env: unknown environment") as caught:
        open_environment(name)
    assert words in str(caught.value)


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.extra and family.module])
def test_a_missing_package_is_told_with_the_extra(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lram_export.rollouts.environments.find_spec", lambda package: None)
    with pytest.raises(UsageError, match=r"needs the package '.*'.*pip install 'lram-export\[evaluate\]'"):
        open_environment(f"{family}/anything")


@pytest.mark.parametrize("family", ["procgen", "robosuite", "composuite", "mimicgen", "command"])
def test_where_no_extra_helps_another_process_does(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lram_export.rollouts.environments.find_spec", lambda package: None)
    with pytest.raises(UsageError, match=f"--env-command {family}=COMMAND"):
        open_environment(f"{family}/anything")


@pytest.mark.parametrize(
    ("setting", "libraries", "message"),
    [
        ("disabled", ["EGL"], "MUJOCO_GL=disabled forbids drawing"),
        ("", [], "apt-get install libegl1"),
    ],
)
def test_drawing_says_what_it_needs(
    setting: str, libraries: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lram_export.rollouts.environments import rendering

    monkeypatch.setenv("MUJOCO_GL", setting)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(rendering.ctypes.util, "find_library", lambda name: name if name in libraries else None)
    with pytest.raises(UsageError, match=message):
        rendering.choose_backend()


@pytest.mark.parametrize(("libraries", "expected"), [(["EGL", "OSMesa"], "egl"), (["OSMesa"], "osmesa")])
def test_drawing_takes_the_library_that_is_there(
    libraries: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lram_export.rollouts.environments import rendering

    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(rendering.ctypes.util, "find_library", lambda name: name if name in libraries else None)
    rendering.choose_backend()
    assert os.environ["MUJOCO_GL"] == expected


def test_the_registry_of_environments_imports_none_of_them() -> None:
    code = (
        "import lram_export.rollouts.environments, sys; "
        "print([m for m in ('gymnasium', 'mujoco', 'metaworld', 'ale_py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
