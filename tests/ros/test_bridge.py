"""The controller's bridge, which needs no ROS, with the engine as a robot builds it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lram_export import ExportOptions, export_bundle
from tests.ros.arms import arm

ROOT = Path(__file__).parents[2]


@pytest.mark.environment
def test_the_bridge_of_the_controller_does_what_its_own_test_says(tmp_path: Path) -> None:
    export_bundle(arm(), None, tmp_path / "arm.lram", ExportOptions(("native",), report=False, reference_steps=20))
    installed = tmp_path / "installed"
    engine = ["cmake", "-S", str(ROOT / "kernels/native"), "-B", str(tmp_path / "engine")]
    run([*engine, "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_INSTALL_PREFIX={installed}"])
    run(["cmake", "--build", str(tmp_path / "engine"), "--parallel", "2"])
    run(["cmake", "--install", str(tmp_path / "engine")])
    bridge = ["cmake", "-S", str(ROOT / "ros/lram_ros_control"), "-B", str(tmp_path / "bridge")]
    run([*bridge, "-DLRAM_BRIDGE_ONLY=ON", f"-DCMAKE_PREFIX_PATH={installed}"])
    run(["cmake", "--build", str(tmp_path / "bridge"), "--parallel", "2"])
    assert run([str(tmp_path / "bridge/bridge_test"), str(tmp_path / "arm.lram")]) == "all well\n"


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
