"""Kits: what is in them, and that they install and run, on another Python than the one that made them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from lram_export.wheel import pack_wheel

from .conftest import ExportFunction, fail, succeed

KIT_FILES = {"install.sh", "README.txt", "control_loop.py", "robot.py", "lram-control.service.in"}


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as kit:
        kit.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


@pytest.fixture
def kit(exported: ExportFunction, tmp_path: Path) -> Path:
    """An unpacked kit of a bundle for a board."""
    bundle = tmp_path / "arm.lram"
    shutil.copytree(exported("state_ms", targets=("tensorrt", "onnxruntime")), bundle)
    succeed("deploy", bundle, "-o", tmp_path / "kit.tar.gz", "--target", "tensorrt")
    return unpack(tmp_path / "kit.tar.gz", tmp_path / "unpacked")


def test_a_kit_has_the_bundle_the_package_and_the_scripts(kit: Path) -> None:
    assert kit.name == "arm"
    names = {path.name for path in kit.iterdir()}
    assert names >= KIT_FILES | {"arm.lram"} and len([n for n in names if n.endswith(".whl")]) == 1
    succeed("inspect", kit / "arm.lram")
    script = (kit / "install.sh").read_text()
    left = script.replace('"$@"', "").replace("|@FOLDER@|", "")  # that one is filled in on the robot
    assert "@" not in left and os.access(kit / "install.sh", os.X_OK)
    assert "[tensorrt]" in script and "target=tensorrt" in script
    subprocess.run(["sh", "-n", str(kit / "install.sh")], check=True)


def test_nothing_in_a_kit_needs_torch(kit: Path) -> None:
    (wheel,) = kit.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    needed = [line for line in metadata.splitlines() if 'extra == "tensorrt"' in line.replace("'", '"')]
    assert required and needed and not [line for line in required + needed if "torch" in line]
    assert not [n for n in names if n.endswith((".so", ".cpp", ".pyc"))]
    expected = {"lram_export/runtimes/tensorrt.py", "lram_export/data/tasks.json", "lram_export/data/kit/install.sh"}
    assert expected <= set(names)


def test_size_and_predicted_memory_are_printed(exported: ExportFunction, tmp_path: Path) -> None:
    bundle = exported("state_ms", targets=("tensorrt", "onnxruntime"))
    result = succeed("deploy", bundle, "-o", tmp_path / "kit.tar.gz")
    assert "memory predicted 50" in result.stderr and "target tensorrt" in result.stderr
    succeed("deploy", bundle, "-o", tmp_path / "kit.tar.gz", "--force", "-q")
    document = json.loads(succeed("deploy", bundle, "-o", tmp_path / "other.tar.gz", "--json").stdout)
    assert document["size"] == (tmp_path / "other.tar.gz").stat().st_size and document["memory"] > 500_000_000


def test_the_same_package_packs_to_the_same_wheel(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert pack_wheel(tmp_path / "a").read_bytes() == pack_wheel(tmp_path / "b").read_bytes()


def test_the_control_loop_rehearses_and_counts_deadlines(kit: Path) -> None:
    arguments = [kit / "control_loop.py", kit / "arm.lram", "--target", "onnxruntime", "--rate", "200", "--steps", "40"]
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("40 steps at 200 Hz: p50 ") and "missed deadlines" in done.stdout


def test_the_control_loop_stops_the_motors_whatever_happens(kit: Path, tmp_path: Path) -> None:
    (kit / "robot.py").write_text(
        "class Robot:\n"
        "    def reset(self): raise RuntimeError('encoder lost')\n"
        f"    def close(self): open({str(tmp_path / 'stopped')!r}, 'w')\n"
    )
    arguments = [kit / "control_loop.py", kit / "arm.lram", "--target", "onnxruntime", "--robot", "robot"]
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "encoder lost" in done.stderr and (tmp_path / "stopped").exists()


def test_installing_without_tensorrt_says_what_is_missing(kit: Path, tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    for tool in ("sh", "dirname", "cp", "mkdir", "sed"):
        (empty / tool).symlink_to(shutil.which(tool) or "")
    # a python3 with no TensorRT: isolated, so that what this environment has is not found
    (empty / "python3").write_text(f'#!/bin/sh\nexec {sys.base_prefix}/bin/python3 -S "$@"\n')
    (empty / "python3").chmod(0o755)
    environment = {"PATH": str(empty)}
    program = ["sh", str(kit / "install.sh"), str(tmp_path / "robot")]
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1 and "install.sh: no TensorRT in python3" in done.stderr
    assert not (tmp_path / "robot").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "kit.zip"), "a kit's name ends with .tar.gz, got 'kit.zip'"),
        (("-o", "kit.tar.gz", "--target", "native"), "'native' is compiled for one processor"),
        (("-o", "kit.tar.gz", "--target", "openvino"), "no artifact for target 'openvino'"),
        (("-o", "nowhere/kit.tar.gz"), "does not exist; create it first"),
    ],
)
def test_what_cannot_be_deployed_is_refused(
    options: tuple[str, ...], message: str, exported: ExportFunction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = exported("state_ms", targets=("onnxruntime", "native"))
    assert message in fail("deploy", bundle, *options)[1]
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_does_not_belong_into_a_script_is_refused(exported: ExportFunction, tmp_path: Path) -> None:
    bundle = tmp_path / "my $(arm).lram"
    shutil.copytree(exported("state_ms", targets=("onnxruntime",)), bundle)
    assert "letters, digits" in fail("deploy", bundle, "-o", tmp_path / "kit.tar.gz")[1]
    assert not (tmp_path / "kit.tar.gz").exists()


def test_the_bundle_in_a_kit_has_the_name_the_scripts_use(
    exported: ExportFunction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "arm"
    shutil.copytree(exported("state_ms", targets=("onnxruntime",)), bundle)
    monkeypatch.chdir(bundle)
    succeed("deploy", ".", "-o", tmp_path / "kit.tar.gz")
    kit = unpack(tmp_path / "kit.tar.gz", tmp_path / "unpacked")
    assert kit.name == "arm" and (kit / "arm.lram" / "manifest.json").is_file()


def test_a_damaged_bundle_is_not_deployed(exported: ExportFunction, tmp_path: Path) -> None:
    bundle = tmp_path / "arm.lram"
    shutil.copytree(exported("state_ms", targets=("onnxruntime",)), bundle)
    (bundle / "onnxruntime" / "model.onnx.data").write_bytes(b"")
    assert "model.onnx.data" in fail("deploy", bundle, "-o", tmp_path / "kit.tar.gz")[1]
    assert not (tmp_path / "kit.tar.gz").exists()
