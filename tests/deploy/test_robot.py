"""Which wheels a robot can install."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from lram_export.deploy.robot import Robot, manylinux_glibc
from lram_export.deploy.wheel import WheelTags, engine_glibc, find_wheel, own_tags, pack_wheel
from lram_export.errors import UsageError


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
        ("cp310-cp310t-manylinux2014_aarch64", False),  # as a free-threaded Python names its own
        ("cp310-none-manylinux2014_aarch64", True),
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


@pytest.mark.parametrize(
    ("policy", "glibc"),
    [
        ("manylinux2014_x86_64", "2.17"),
        ("manylinux1_x86_64", "2.5"),
        ("manylinux_2_34_aarch64", "2.34"),
        ("linux_aarch64", None),
    ],
)
def test_a_policy_names_a_c_library(policy: str, glibc: str | None) -> None:
    assert manylinux_glibc(policy) == glibc


def test_of_two_wheels_for_the_same_python_the_one_that_promises_to_run_elsewhere_is_taken(tmp_path: Path) -> None:
    own, robot = pack_wheel(tmp_path, engine=True), Robot.of()
    promised = own.with_name(own.name.replace("-linux_", "-manylinux2014_"))
    assert find_wheel(tmp_path, robot, engine=True) == own
    shutil.copy(own, promised)
    assert find_wheel(tmp_path, robot, engine=True) == promised


def test_what_an_engine_asks_of_the_c_library_is_read_from_it(tmp_path: Path) -> None:
    asked = engine_glibc(pack_wheel(tmp_path, engine=True))
    here = os.confstr("CS_GNU_LIBC_VERSION")
    assert here is not None and 2 < int(asked.removeprefix("2.")) <= int(here.split(".")[1])
    assert engine_glibc(pack_wheel(tmp_path)) == ""


def test_a_damaged_engine_is_one_line(tmp_path: Path) -> None:
    wheel = pack_wheel(tmp_path, engine=True)
    with zipfile.ZipFile(wheel) as archive:
        (engine,) = [each for each in archive.infolist() if each.filename.endswith(".so")]
    content = bytearray(wheel.read_bytes())
    middle = engine.header_offset + engine.compress_size // 2
    content[middle : middle + 64] = bytes(64)
    wheel.write_bytes(content)
    with pytest.raises(UsageError, match=r"^--dist: .*: damaged "):
        engine_glibc(wheel)


def test_the_engine_of_a_free_threaded_python_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_tags().serve(Robot.of())
    monkeypatch.setattr("sys.abiflags", "t")
    assert own_tags().abi.endswith("t") and not own_tags().serve(Robot.of())
