"""Simulators of robosuite, as they are: in this process, and with the MuJoCo of the training data in another Python.

Mimicgen and Composuite are on no package index. Where their sources are, LRAM_SIMULATORS lists the folders as PATH
does: those of NVlabs/mimicgen, ARISE-Initiative/robosuite-task-zoo and Lifelong-ML/CompoSuite.
"""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from lram_export.bundle.bundle import Bundle
from lram_export.errors import LramError, UsageError
from lram_export.rollouts.environments import open_environment, serve_environment
from lram_export.rollouts.evaluation import EvaluationOptions, evaluate
from lram_export.rollouts.suites import find_suite
from tests.conftest import ExportFunction

pytestmark = pytest.mark.environment
ROBOSUITE = "robosuite==1.4.1"
REPOSITORY = Path(__file__).resolve().parents[2]
OF_THE_DATA = ("mujoco==2.3.7", "numpy<2")
"""The authors' is 2.3.2; with MuJoCo 3 a Sawyer does not load, nor does the kitchen with NumPy 2."""
SOURCES = [folder for folder in os.environ.get("LRAM_SIMULATORS", "").split(os.pathsep) if folder]
WITH_SOURCES = pytest.mark.skipif(not SOURCES, reason="LRAM_SIMULATORS names no folder")
OTHERS = ("h5py", "tqdm", "imageio", "gym==0.26.2")
"""What Mimicgen and Composuite import beside robosuite."""


@pytest.fixture(scope="module", autouse=True)
def _installed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """robosuite behind this environment: what both need is this one's."""
    folder = tmp_path_factory.mktemp("simulators")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, ROBOSUITE]
    subprocess.run([*command, *(OTHERS if SOURCES else ())], check=True)
    sys.path += [str(folder), *SOURCES]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the training data's MuJoCo, and ours."""
    folder = tmp_path_factory.mktemp("old") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    wanted = [*OF_THE_DATA, ROBOSUITE, "gymnasium", *(OTHERS if SOURCES else ()), str(REPOSITORY)]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "simulators.pth").write_text("\n".join(SOURCES))
    return python


def command(python: Path, family: str) -> str:
    made_by = f"lram_export.rollouts.environments.{family}:make"
    return shlex.join([str(python), serve_environment.__file__, made_by])


def play(environment: gymnasium.Env[Any, Any], seed: int, steps: int = 6) -> np.ndarray:
    """Observations and rewards of random actions."""
    actions = np.random.default_rng(0)
    seen = [environment.reset(seed=seed)[0]]
    for _ in range(steps):
        observation, reward, *_, info = environment.step(actions.uniform(-1, 1, environment.action_space.shape))
        assert type(info["success"]) is bool
        seen.append(np.append(observation, reward))
    return np.concatenate(seen)


def check_seeds(name: str, made_by: str | None = None) -> tuple[int, int]:
    """An episode is a function of its seed, whatever was played before and drawn elsewhere; gives the widths."""
    first, other = open_environment(name, command=made_by), open_environment(name, command=made_by)
    try:
        played = play(first, 3)
        assert not np.array_equal(play(first, 4), played)
        np.random.seed(7)
        random.seed(7)
        mine = np.random.get_state()[1], random.getstate()
        assert np.array_equal(play(first, 3), played)
        assert np.array_equal(play(other, 3), played)
        assert np.array_equal(np.random.get_state()[1], mine[0]) and random.getstate() == mine[1]
        return int(np.prod(first.observation_space.shape)), int(np.prod(first.action_space.shape))
    finally:
        first.close()
        other.close()


@pytest.mark.parametrize(
    ("name", "widths"), [("Lift", (42, 7)), ("Stack", (55, 7)), ("NutAssembly-UR5e", (65, 7)), ("TwoArmLift", (83, 14))]
)
def test_an_episode_is_a_function_of_its_seed(name: str, widths: tuple[int, int]) -> None:
    assert check_seeds(f"robosuite/{name}") == widths


def test_an_episode_ends_by_its_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from lram_export.rollouts.environments import robosuite

    monkeypatch.setattr(robosuite, "EPISODE_STEPS", 3)
    environment = open_environment("robosuite/Lift")
    environment.reset(seed=0)
    ends = [environment.step(np.zeros(7))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    environment.close()


def test_a_picture() -> None:
    environment = open_environment("robosuite/Lift", render=True)
    environment.reset(seed=0)
    frame = np.asarray(environment.render())
    assert frame.shape == (480, 480, 3) and frame.dtype == np.uint8 and frame.std() > 10
    environment.close()


@pytest.mark.parametrize(
    ("name", "words"), [("Lifd", "Nearest: robosuite/Lift"), ("Lift-Pando", "Nearest: robosuite/Lift-Panda")]
)
def test_an_unknown_name_has_a_nearest_one(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_environment(f"robosuite/{name}")


def test_a_package_that_only_has_the_name_is_told(tmp_path: Path) -> None:
    """PyPI's ``mimicgen`` is another project: none of its code is run. In a process of its own, which imports nothing
    twice."""
    (tmp_path / "mimicgen").mkdir()
    (tmp_path / "mimicgen" / "__init__.py").write_text("raise SystemExit('imported')")
    code = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}]
sys.path += {sys.path!r}
from lram_export.rollouts.environments import open_environment
open_environment("mimicgen/coffee_d0")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert "is not the simulator, which is not on PyPI; pip uninstall mimicgen" in done.stderr.splitlines()[-1]


def test_with_the_mujoco_of_the_data_every_arm_is_there(old: Path) -> None:
    with pytest.raises(LramError, match="mesh volume is too small"):
        open_environment("robosuite/Lift-Sawyer")
    assert check_seeds("robosuite/Lift-Sawyer", command(old, "robosuite")) == (42, 7)


@WITH_SOURCES
class TestSources:
    @pytest.mark.parametrize(
        ("name", "widths"),
        [
            ("mimicgen/coffee_d0", (66, 7)),
            ("mimicgen/StackThree_D1", (48, 7)),
            ("mimicgen/stack_D1_robot_IIWA_gripper_Robotiq85Gripper", (36, 7)),
            ("composuite/IIWA_Box_None_PickPlace", (93, 8)),
        ],
    )
    def test_an_episode_is_a_function_of_its_seed(self, name: str, widths: tuple[int, int]) -> None:
        assert check_seeds(name) == widths

    @pytest.mark.parametrize("family", ["mimicgen", "composuite"])
    def test_every_task_of_the_table_has_a_name_here(self, family: str) -> None:
        from lram_export.rollouts.environments import composuite, mimicgen

        known = {"mimicgen": mimicgen, "composuite": composuite}[family]
        names = set(known.names())
        suite = {"mimicgen": "mimicgen-85", "composuite": "composuite-256"}[family]
        tasks = [wanted.environment.partition("/")[2] for wanted in find_suite(suite).wanted]
        shown = [mimicgen.canonical(task) if family == "mimicgen" else task for task in tasks]
        assert set(shown) <= names and len(set(shown)) == len(tasks)

    @pytest.mark.slow
    def test_all_of_the_tables_tasks_can_be_played_with_the_mujoco_of_the_data(self, old: Path) -> None:
        """Half an hour."""
        for suite in ("mimicgen-85", "composuite-256"):
            for wanted in find_suite(suite).wanted:
                family = wanted.environment.partition("/")[0]
                environment = open_environment(wanted.environment, command=command(old, family))
                played = play(environment, 3)
                assert np.array_equal(play(environment, 3), played), wanted.environment
                environment.close()

    def test_a_bundle_plays_them(self, exported: ExportFunction) -> None:
        options = ("--task", "composuite/IIWA_Box_None_Push", "--observation-dim", "93", "--action-dim", "8")
        bundle = Bundle.open(exported("state_m", targets=("native",), options=options))
        names = ("composuite/IIWA_Box_None_Push", "mimicgen/coffee_d0")
        result = evaluate(bundle, EvaluationOptions(names, ("native",), episodes=1), None)
        assert result.failures == {} and [len(r.episodes) for r in result.results] == [1, 1]
        assert [r.steps for r in result.results] == [500, 400]
