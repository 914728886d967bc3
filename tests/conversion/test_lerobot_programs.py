"""A bundle runs in LeRobot, unmodified: lerobot-eval on Meta-World, and what lerobot-rollout calls.

LeRobot is installed into ``build/lerobot``: 5 to 20 minutes and 6 GB, most of it torch. Run by `make test-lerobot`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import succeed
from tests.conversion.robots import FRAMES, bundle_that_sees
from wheels.pythons import find_python

pytestmark = pytest.mark.lerobot
ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "integrations" / "lerobot"
PLACE = ROOT / "build" / "lerobot"
VERSION = "3.12"
PACKAGES = ("lerobot[dataset,evaluation]==0.6.1", "metaworld==3.1.1", "onnxruntime", "pytest")
CHECKPOINT = ROOT / "examples" / "metaworld" / "checkpoints" / "xlstm" / "model.zip"
PROGRAM = Path(__file__).parent / "consumers" / "metaworld_returns.py"
TASK, EPISODES = "reach-v3", 4
ROWS = EPISODES  # all at once: LeRobot records one batch, and makes its folder anew for the next, which fails


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment's programs: LeRobot, this package with its engine, the plugin, an environment."""
    folder, stamp = PLACE / "venv", PLACE / "venv" / ".installed"
    if not stamp.exists() or stamp.read_text() != repr(PACKAGES):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([find_python(VERSION), "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        stamp.write_text(repr(PACKAGES))
    plugin = tmp_path_factory.mktemp("plugin") / "lerobot"
    shutil.copytree(PLUGIN, plugin)  # it is built where it lies
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, ROOT], check=True)
    subprocess.run([*install, "--no-deps", "--force-reinstall", plugin, plugin / "tests" / "env"], check=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with policies for LeRobot."""
    folder = tmp_path_factory.mktemp("cases")
    targets = ("--target", "native", "--target", "onnxruntime")
    succeed("export", CHECKPOINT, "-o", folder / "m.lram", "--task", "metaworld/reach-v2", *targets, "--no-report")
    bundle_that_sees(folder / "s.lram", FRAMES)
    for bundle, name in (("m.lram", "metaworld"), ("s.lram", "sees")):
        succeed("convert", folder / bundle, "--to", "lerobot", "-o", folder / name)
    return folder


def run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= {"HF_HOME": str(cwd / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_the_plugins_own_tests(programs: Path, cases: Path, tmp_path: Path) -> None:
    print(run(programs / "python", "-m", "pytest", "-q", PLUGIN / "tests", "--cases", cases, cwd=tmp_path))


def test_lerobot_eval(programs: Path, cases: Path, tmp_path: Path) -> None:
    """Four episodes, all at once: each succeeds, and has the return of the same policy played by ours alone."""
    run(
        programs / "lerobot-eval",
        f"--policy.path={cases / 'metaworld'}",
        "--env.type=metaworld_state",
        f"--env.task={TASK}",
        f"--eval.n_episodes={EPISODES}",
        f"--eval.batch_size={ROWS}",
        "--eval.use_async_envs=false",
        "--eval.recording=true",  # in place of films, which need something that draws
        "--seed=0",
        f"--output_dir={tmp_path / 'out'}",
        cwd=tmp_path,
    )
    (found,) = json.loads((tmp_path / "out" / "eval_info.json").read_text())["per_task"]
    metrics: dict[str, Any] = found["metrics"]
    print(metrics["successes"], metrics["sum_rewards"])
    alone = (programs / "python", PROGRAM, cases / "m.lram", TASK, str(EPISODES), str(ROWS))
    played = json.loads(run(*alone, cwd=tmp_path).splitlines()[-1])
    assert metrics["successes"] == [True] * EPISODES == played["successes"]
    np.testing.assert_allclose(metrics["sum_rewards"], played["returns"], rtol=1e-9)
