"""The release wheels, installed where they belong: `make test-wheels`, after `make wheels`.

Another compiler orders sums otherwise. So what the engine of a wheel computes is held to what the one compiled here
does by the tolerances of `lram_export/spec/parity.py`; its actions are the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lram_export import load_policy
from lram_export.spec.parity import TOLERANCES
from tests import emulated_arm
from tests.conftest import ExportFunction, load_golden
from wheels.matrix import KERNELS, MACHINES, PYTHONS, WheelError, builds
from wheels.pythons import find_python

ROOT = Path(__file__).parent.parent.parent
DIST = Path(os.environ.get("LRAM_WHEELS", ROOT / "dist"))
LATER = "3.13"
STEPS = 24
pytestmark = pytest.mark.wheels

ACT = """
import sys
import numpy as np
from lram_export import _native, load_policy

observations, output, *bundles = sys.argv[1:]
found = {"kernels": _native.instruction_sets()}
for name in bundles:
    with load_policy(name, "native", threads=1) as policy:
        steps = [(policy.act(o).copy(), policy.action_logits.copy()) for o in np.load(observations)]
    actions, logits = zip(*steps)
    found[f"{name}:actions"], found[f"{name}:logits"] = actions, logits
np.savez(output, **found)
"""


def run(*command: str | Path) -> str:
    # the checkout must not be found in place of what is installed
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bundles(exported: ExportFunction) -> dict[str, Path]:
    """By the name of the tolerance that they are held to."""
    golden = load_golden("state_ms")
    return {
        name: exported("state_ms", targets=("native",), options=[*golden.task_options, "--precision", precision])
        for name, precision in (("fp32", "fp32"), ("quantized", "int8"))
    }


@pytest.fixture(scope="module")
def observations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("observations") / "observations.npy"
    np.save(path, load_golden("state_ms").trace["observations"][:STEPS])
    return path


def check(found: Path, bundles: dict[str, Path], observations: Path, kernels: tuple[str, ...] | None) -> None:
    """Compare what the engine of a wheel did with what the one here does."""
    from lram_export import _native

    with np.load(found) as file:
        assert tuple(file["kernels"]) == (kernels or tuple(_native.instruction_sets()))
        for name, bundle in bundles.items():
            with load_policy(bundle, "native", threads=1) as policy:
                for step, observation in enumerate(np.load(observations)):
                    action = policy.act(observation)
                    expected, logits = policy.action_logits, file[f"{bundle}:logits"][step]
                    error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
                    assert error <= TOLERANCES[name].logit, (name, step, error)
                    np.testing.assert_array_equal(file[f"{bundle}:actions"][step], action)


def test_all_are_there() -> None:
    found = {path.name for path in DIST.glob("lram_export-*.whl")}
    for build in builds():
        assert [name for name in found if f"-{build.tags}-{build.policy}." in name], f"{DIST}: no {build}: make wheels"


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", [*PYTHONS, LATER, "3.14"])
def test_pip_finds_the_one_that_serves(python: str, machine: str, tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", tmp_path)
    here = ("--no-index", "--find-links", DIST, "--python-version", python, f"--platform=manylinux_2_17_{machine}")
    run(*pip, *here, "lram-export")
    (wheel,) = tmp_path.iterdir()
    version = python.replace(".", "")
    assert f"-cp{version}-cp{version}-" in wheel.name if python in PYTHONS[:-1] else "-cp312-abi3-" in wheel.name


@pytest.mark.parametrize("python", [*PYTHONS, LATER])
def test_it_is_installed_verifies_and_acts(
    python: str, bundles: dict[str, Path], observations: Path, tmp_path: Path
) -> None:
    try:
        interpreter = find_python(python)
    except WheelError as error:
        if python in PYTHONS:  # which built them
            raise
        pytest.skip(str(error))
    run(interpreter, "-m", "venv", tmp_path / "venv")
    programs = tmp_path / "venv" / "bin"
    run(programs / "pip", "install", "--quiet", "--only-binary=:all:", *emulated_arm.BASE_PACKAGES)
    run(programs / "pip", "install", "--quiet", "--no-index", "--find-links", DIST, "lram-export[native]")
    for bundle in bundles.values():
        assert "passed" in run(programs / "lram-export", "verify", bundle, "--target", "native")
    run(programs / "python", "-c", ACT, observations, tmp_path / "found.npz", *bundles.values())
    check(tmp_path / "found.npz", bundles, observations, None)


@pytest.mark.parametrize("python", sorted(emulated_arm.SUITES))
@pytest.mark.parametrize(
    ("cpu", "kernels"), [("cortex-a76", ("neondot", "neon", "plain")), ("cortex-a72", ("neon", "plain"))]
)
def test_it_verifies_and_acts_on_an_emulated_arm_robot(
    python: str, cpu: str, kernels: tuple[str, ...], bundles: dict[str, Path], observations: Path, tmp_path: Path
) -> None:
    assert kernels == KERNELS["aarch64"][-len(kernels) :]
    robot = ROOT / "build" / "wheels" / f"robot-{python}"
    emulated_arm.prepare(robot, python, emulated_arm.BASE_PACKAGES)
    emulated_arm.install(robot, "--no-deps", "--no-index", "--find-links", str(DIST), "lram-export", python=python)

    def on_robot(*arguments: str | Path) -> None:
        emulated_arm.emulated(robot, *map(str, arguments), cpu=cpu, python=python)

    for bundle in bundles.values():
        on_robot("-m", "lram_export", "verify", bundle, "--target", "native")
    on_robot("-c", ACT, observations, tmp_path / "found.npz", *bundles.values())
    check(tmp_path / "found.npz", bundles, observations, kernels)
