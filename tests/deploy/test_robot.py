"""Which wheels a robot can install."""

from __future__ import annotations

from pathlib import Path

import pytest

from lram_export.deploy.robot import Robot
from lram_export.deploy.wheel import WheelTags


@pytest.mark.parametrize(
    ("tags", "served"),
    [
        ("py3-none-any", True),
        ("cp310-cp310-manylinux2014_aarch64.manylinux_2_17_aarch64", True),
        ("cp310-cp310-manylinux_2_31_aarch64", True),
        ("cp310-cp310-linux_aarch64", True),
        ("cp310-cp310-manylinux_2_34_aarch64", False),
        ("cp310-cp310-manylinux2014_x86_64", False),
        ("cp39-abi3-manylinux2014_aarch64", True),
        ("cp310-abi3-manylinux2014_aarch64", True),
        ("cp312-abi3-manylinux2014_aarch64", False),
        ("cp39-cp39-manylinux2014_aarch64", False),
    ],
)
def test_a_wheel_serves_by_its_tags(tags: str, served: bool) -> None:
    robot = Robot("aarch64", "3.10", "2.31")
    assert WheelTags.of(Path(f"lram_export-0.1.0-{tags}.whl")).serve(robot) is served


def test_an_older_platform_is_one_that_a_robot_runs() -> None:
    platforms = Robot("x86_64", "3.12", "2.35").platforms
    assert platforms[0] == "manylinux_2_35_x86_64" and platforms[-1] == "linux_x86_64"
    assert {"manylinux_2_5_x86_64", "manylinux1_x86_64", "manylinux2014_x86_64"} <= set(platforms)
    assert "manylinux_2_16_aarch64" not in Robot("aarch64", "3.12").platforms  # there was none
