"""The controller's bridge, which needs no ROS, with the engine as a robot builds it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lram_export import ExportOptions, export_bundle
from tests.ros.arms import arm, in_degrees

ROOT = Path(__file__).parents[2]


@pytest.mark.environment
def test_the_bridge_of_the_controller_does_what_its_own_test_says(tmp_path: Path) -> None:
    mixed = arm(units=("rad", "rad/s"), safety=None)
    policies = {"arm": arm(), "degrees": in_degrees(), "mixed": mixed}
    bundles = [tmp_path / f"{name}.lram" for name in policies]
    for path, policy in zip(bundles, policies.values(), strict=True):
        export_bundle(policy, None, path, ExportOptions(("native",), report=False, reference_steps=20))
    installed = tmp_path / "installed"
    engine = ["cmake", "-S", str(ROOT / "kernels/native"), "-B", str(tmp_path / "engine")]
    run([*engine, "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_INSTALL_PREFIX={installed}"])
    run(["cmake", "--build", str(tmp_path / "engine"), "--parallel", "2"])
    run(["cmake", "--install", str(tmp_path / "engine")])
    bridge = ["cmake", "-S", str(ROOT / "ros/lram_ros_control"), "-B", str(tmp_path / "bridge")]
    run([*bridge, "-DLRAM_BRIDGE_ONLY=ON", f"-DCMAKE_PREFIX_PATH={installed}"])
    run(["cmake", "--build", str(tmp_path / "bridge"), "--parallel", "2"])
    assert run([str(tmp_path / "bridge/bridge_test"), *map(str, bundles)]) == "all well\n"


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
