"""A real environment that this Python cannot have: Procgen, whose wheels end with Python 3.10."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lram_export.bundle.bundle import Bundle
from lram_export.rollouts.environments import open_environment, serve_environment
from lram_export.rollouts.evaluation import EvaluationOptions, evaluate
from tests.conftest import ExportFunction

pytestmark = pytest.mark.environment
VERSIONS = ("3.9", "3.10", "3.8")


def older_python() -> str | None:
    """A Python that Procgen has wheels for: on the path, or of pyenv."""
    for version in VERSIONS:
        found = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
        for program in found:
            if program and subprocess.run([program, "-c", ""], capture_output=True, check=False).returncode == 0:
                return str(program)
    return None


@pytest.fixture(scope="module")
def procgen(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The command, in an environment of its own."""
    program = older_python()
    if program is None:
        pytest.skip(f"needs one of Python {', '.join(VERSIONS)}")
    folder = tmp_path_factory.mktemp("old")
    subprocess.run([program, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "procgen"], check=True)
    copied = shutil.copy(serve_environment.__file__, folder)
    return shlex.join([str(python), str(copied), "procgen"])


def test_a_level_is_a_function_of_its_seed(procgen: str) -> None:
    environment = open_environment("procgen/coinrun", command=procgen)
    try:
        assert environment.observation_space.shape == (3, 64, 64)
        first, _ = environment.reset(seed=3)
        for action in (7, 17):  # right, and a choice that no game has
            seen, *_ = environment.step(np.int64(action))
        other, _ = environment.reset(seed=4)
        again, _ = environment.reset(seed=3)
        assert np.array_equal(first, again) and not np.array_equal(first, other) and not np.array_equal(first, seen)
    finally:
        environment.close()


def test_a_bundle_of_images_plays_the_suite(procgen: str, exported: ExportFunction) -> None:
    bundle = Bundle.open(exported("image_m", targets=("native",)))
    names = ("procgen/coinrun", "procgen/bigfish")
    options = EvaluationOptions(names, ("native",), episodes=1, commands={"procgen": procgen})
    result = evaluate(bundle, options, None)
    assert result.failures == {} and [len(r.episodes) for r in result.results] == [1, 1]
    assert all(0 < r.steps <= 400 for r in result.results)
