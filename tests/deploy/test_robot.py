"""Which wheels a robot can install."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from lram_export import _native
from lram_export.deploy.robot import Robot, manylinux_glibc
from lram_export.deploy.wheel import Needs, WheelTags, engine_needs, find_wheel, own_tags, pack_wheel
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


def test_one_that_promises_to_run_elsewhere_is_taken_before_one_for_the_very_python(tmp_path: Path) -> None:
    own, robot = pack_wheel(tmp_path, engine=True), Robot.of()
    stable = own.with_name(f"lram_export-0.1.0-cp310-abi3-manylinux2014_{robot.machine}.whl")
    shutil.copy(own, stable)
    assert find_wheel(tmp_path, robot, engine=True) == stable
    promised = own.with_name(own.name.replace("-linux_", "-manylinux2014_"))
    shutil.copy(own, promised)
    assert find_wheel(tmp_path, robot, engine=True) == promised


def test_of_two_wheels_for_the_same_python_the_one_that_promises_to_run_elsewhere_is_taken(tmp_path: Path) -> None:
    own, robot = pack_wheel(tmp_path, engine=True), Robot.of()
    promised = own.with_name(own.name.replace("-linux_", "-manylinux2014_"))
    assert find_wheel(tmp_path, robot, engine=True) == own
    shutil.copy(own, promised)
    assert find_wheel(tmp_path, robot, engine=True) == promised


def test_what_an_engine_asks_of_the_c_and_the_cpp_library_is_read_from_it(tmp_path: Path) -> None:
    asked = engine_needs(pack_wheel(tmp_path, engine=True))
    here = os.confstr("CS_GNU_LIBC_VERSION")
    assert here is not None and 2 < int(asked.glibc.removeprefix("2.")) <= int(here.split(".")[1])
    assert _native.instruction_sets()  # it is loaded, and so is what it needs
    with Path("/proc/self/maps").open() as maps:
        library = next(line.split()[-1] for line in maps if "/libstdc++.so" in line)
    symbols = f"GLIBCXX_{asked.glibcxx}\0".encode()
    assert asked.glibcxx.startswith("3.4.") and symbols in Path(library).read_bytes()
    assert engine_needs(pack_wheel(tmp_path)) == Needs("", "")


@pytest.mark.parametrize(
    ("symbols", "glibcxx"),
    [
        (b"GLIBCXX_3.4\0CXXABI_1.3", ""),
        (b"GLIBCXX_3.4\0GLIBCXX_3.4.21\0GLIBCXX_3.4.9\0CXXABI_1.3.9", "3.4.21"),
        (b"GLIBCXX_3.4.21\0CXXABI_1.3.13", "3.4.29"),  # what GCC 11 brought
        (b"GLIBCXX_3.4.32\0CXXABI_1.3.13", "3.4.32"),
        (b"GLIBCXX_3.4.21\0CXXABI_1.3.17", "3.4.35"),  # of a GCC to come
        (b"NOT_GLIBCXX_3.4.30\0GLIBCXX_3.4.30x", ""),
    ],
)
def test_the_cpp_library_that_an_engine_needs_follows_from_both_kinds_of_symbols(
    symbols: bytes, glibcxx: str, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "engine.whl", "w") as archive:
        archive.writestr("lram_export/_native.so", b"\x7fELF\0" + symbols + b"\0")
    assert engine_needs(tmp_path / "engine.whl") == Needs("", glibcxx)


@pytest.mark.parametrize(
    ("glibc", "told", "minor"),
    [("2.17", "", 19), ("2.26", "", 19), ("2.31", "", 28), ("2.36", "", 30), ("2.50", "", 33), ("2.31", "3.4.30", 30)],
)
def test_a_robots_cpp_library_is_told_or_the_one_beside_its_c_library(glibc: str, told: str, minor: int) -> None:
    assert Robot("x86_64", "3.10", glibc, told).minor_glibcxx == minor


def test_a_damaged_engine_is_one_line(tmp_path: Path) -> None:
    wheel = pack_wheel(tmp_path, engine=True)
    with zipfile.ZipFile(wheel) as archive:
        (engine,) = [each for each in archive.infolist() if each.filename.endswith(".so")]
    content = bytearray(wheel.read_bytes())
    middle = engine.header_offset + engine.compress_size // 2
    content[middle : middle + 64] = bytes(64)
    wheel.write_bytes(content)
    with pytest.raises(UsageError, match=r"^--dist: .*: damaged "):
        engine_needs(wheel)


def test_the_engine_of_a_free_threaded_python_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_tags().serve(Robot.of())
    monkeypatch.setattr("sys.abiflags", "t")
    assert own_tags().abi.endswith("t") and not own_tags().serve(Robot.of())
