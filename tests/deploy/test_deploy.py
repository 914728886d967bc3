"""Kits: what is in them, and that they install and run, on another Python than the one that made them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from lram_export.bundle.bundle import Bundle
from lram_export.deploy.wheel import engine_needs, pack_wheel
from lram_export.loop.robot import METHODS, Robot
from tests.conftest import ExportFunction, fail, succeed

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
    succeed("deploy", bundle, "-o", tmp_path / "kit.tar.gz", "--target", "tensorrt", "--target", "onnxruntime")
    return unpack(tmp_path / "kit.tar.gz", tmp_path / "unpacked")


def test_a_kit_has_the_bundle_the_package_and_the_scripts(kit: Path) -> None:
    assert kit.name == "arm"
    names = {path.name for path in kit.iterdir()}
    assert names == KIT_FILES | {"arm.lram", "wheels"}
    wheel, sums = sorted((kit / "wheels").iterdir(), key=lambda path: path.name == "SHA256SUMS")
    assert wheel.name in (kit / "README.txt").read_text() and wheel.name in sums.read_text()
    subprocess.run(["sha256sum", "--check", "--status", sums.name], cwd=kit / "wheels", check=True)
    succeed("inspect", kit / "arm.lram")
    script = (kit / "install.sh").read_text()
    left = script.replace('"$@"', "").replace("|@FOLDER@|", "")  # that one is filled in on the robot
    assert "@" not in left and os.access(kit / "install.sh", os.X_OK)
    assert "[tensorrt,flight]" in script and "target=tensorrt" in script
    subprocess.run(["sh", "-n", str(kit / "install.sh")], check=True)


def test_the_class_to_fill_in_names_all_that_the_loop_asks(kit: Path) -> None:
    optional = re.findall(r"- ``(\w+)\(\)``", Robot.__doc__ or "")
    text = (kit / "robot.py").read_text()
    assert "stop" in optional
    assert not [name for name in METHODS if f"def {name}(self" not in text]
    assert not [name for name in optional if f"{name}()" not in text]


def test_nothing_in_a_kit_needs_torch(kit: Path) -> None:
    (wheel,) = kit.glob("wheels/*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    needed = [line for line in metadata.splitlines() if 'extra == "tensorrt"' in line.replace("'", '"')]
    assert required and needed and not [line for line in required + needed if "torch" in line]
    assert not [n for n in names if n.endswith((".so", ".cpp", ".pyc"))]
    expected = {
        "lram_export/runtimes/tensorrt.py",
        "lram_export/spec/tasks.json",
        "lram_export/deploy/templates/install.sh",
    }
    assert expected <= set(names)


def test_size_and_predicted_memory_are_printed(exported: ExportFunction, tmp_path: Path) -> None:
    bundle = exported("state_ms", targets=("tensorrt", "onnxruntime"))
    result = succeed("deploy", bundle, "-o", tmp_path / "kit.tar.gz")
    assert "memory predicted 50" in result.stderr and "target tensorrt" in result.stderr
    root = bundle.name.removesuffix(".lram")
    assert result.stderr.endswith(f"on the robot: tar xzf kit.tar.gz, then sudo sh {root}/install.sh\n")
    succeed("deploy", bundle, "-o", tmp_path / "kit.tar.gz", "--force", "-q")
    document = json.loads(succeed("deploy", bundle, "-o", tmp_path / "other.tar.gz", "--json").stdout)
    assert document["size"] == (tmp_path / "other.tar.gz").stat().st_size and document["memory"] > 500_000_000


def test_memory_is_predicted_for_the_target_that_runs(exported: ExportFunction, tmp_path: Path) -> None:
    bundle = exported("state_ms", targets=("onnxruntime", "native"))
    predicted = {}
    for target in ("onnxruntime", "native"):
        options = ("-o", tmp_path / f"{target}.tar.gz", "--target", target, "--json")
        predicted[target] = json.loads(succeed("deploy", bundle, *options).stdout)["memory"]
    assert predicted["native"] < predicted["onnxruntime"] < 200_000_000  # TensorRT's libraries alone take more
    board = json.loads(succeed("inspect", bundle, "--device", "n100", "--json").stdout)["predictions"]
    shown = {p["target"]: p["memory"] for p in board if p["precision"] == "fp32"}
    for target, memory in predicted.items():
        assert memory == pytest.approx(shown[target], rel=0.01)


def test_only_what_was_asked_for_is_packed(exported: ExportFunction, tmp_path: Path) -> None:
    bundle = exported("state_ms", targets=("onnxruntime", "native"))
    succeed("deploy", bundle, "-o", tmp_path / "one.tar.gz", "--target", "onnxruntime", "-q")
    one = unpack(tmp_path / "one.tar.gz", tmp_path / "one")
    packed = Bundle.open(next(one.glob("*.lram")))
    packed.check_files()
    assert packed.targets == ("onnxruntime",) and not (packed.path / "native").exists()
    assert packed.artifact_digest("onnxruntime") == Bundle.open(bundle).artifact_digest("onnxruntime")
    succeed("verify", packed.path, "--target", "onnxruntime")
    succeed("deploy", bundle, "-o", tmp_path / "two.tar.gz", "--target", "native", "--target", "onnxruntime", "-q")
    two = unpack(tmp_path / "two.tar.gz", tmp_path / "two")
    assert Bundle.open(next(two.glob("*.lram"))).targets == ("native", "onnxruntime")
    assert "target=native" in (two / "install.sh").read_text()


def test_a_bundle_that_is_too_old_to_be_written_again_is_not_packed(tmp_path: Path) -> None:
    older = Path(__file__).parent.parent / "bundles"
    said = fail("deploy", older / "schema-2.lram", "-o", tmp_path / "kit.tar.gz", "--target", "onnxruntime")[1]
    assert "was written before schema version 3" in said and "export it again" in said
    assert not list(tmp_path.iterdir())
    succeed("deploy", older / "schema-3.lram", "-o", tmp_path / "kit.tar.gz", "--target", "onnxruntime", "-q")
    packed = Bundle.open(next(unpack(tmp_path / "kit.tar.gz", tmp_path / "kit").glob("*.lram")))
    packed.check_files()
    succeed("verify", packed.path, "--target", "onnxruntime")


def test_the_wheel_of_a_kit_for_native_has_its_engine_and_says_for_which_machine(
    exported: ExportFunction, tmp_path: Path
) -> None:
    bundle = exported("state_ms", targets=("onnxruntime", "native"))
    succeed("deploy", bundle, "-o", tmp_path / "kit.tar.gz", "--target", "native", "-q")
    kit = unpack(tmp_path / "kit.tar.gz", tmp_path / "unpacked")
    (wheel,) = kit.glob("wheels/*.whl")
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert wheel.name.endswith(f"-{python}-{python}-linux_{os.uname().machine}.whl")
    code = "import lram_export._native as n, sys; print(n.__file__); sys.exit(not n.instruction_sets())"
    (tmp_path / "site").mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    # without site: an editable installation puts itself before every path
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}:{sysconfig.get_path('purelib')}"}
    program = [sys.executable, "-S", "-c", code]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True)
    assert done.stdout.startswith(str(tmp_path / "site"))
    script = (kit / "install.sh").read_text().replace(f"machine={os.uname().machine}", "machine=riscv64")
    (kit / "install.sh").write_text(script)
    refused = subprocess.run(["sh", str(kit / "install.sh"), str(tmp_path / "r")], capture_output=True, text=True)
    assert refused.returncode == 1 and "this kit is for riscv64, this machine is" in refused.stderr


def test_of_the_wheels_in_a_folder_the_one_for_the_robot_goes_along(exported: ExportFunction, tmp_path: Path) -> None:
    bundle = exported("state_ms", targets=("onnxruntime", "native"))
    (dist := tmp_path / "dist").mkdir()
    own = pack_wheel(dist, engine=True)
    tag = "-".join(own.name.split("-")[2:])
    names = {}
    for platform, tags in (("aarch64", "cp310-cp310"), ("aarch64", "cp312-abi3"), ("x86_64", "cp310-cp310")):
        names[platform, tags] = own.name.replace(tag, f"{tags}-manylinux2014_{platform}.manylinux_2_17_{platform}.whl")
        shutil.copy(own, dist / names[platform, tags])
    options = ("-o", tmp_path / "kit.tar.gz", "--target", "native", "--dist", dist, "--platform", "aarch64", "--json")
    for python, tags in (("3.10", "cp310-cp310"), ("3.13", "cp312-abi3")):
        made = json.loads(succeed("deploy", bundle, *options, "--python", python, "--force").stdout)
        assert made["wheel"] == names["aarch64", tags]
    script = (unpack(tmp_path / "kit.tar.gz", tmp_path / "unpacked") / "install.sh").read_text()
    assert "python=3.12+ " in script and "machine=aarch64\n" in script


@pytest.mark.parametrize(("abi", "runs_here"), [("cp310-abi3", True), ("cp310-cp310", False), ("cp313-abi3", False)])
def test_a_wheel_of_the_stable_abi_serves_later_pythons_too(
    abi: str, runs_here: bool, exported: ExportFunction, tmp_path: Path
) -> None:
    (dist := tmp_path / "dist").mkdir()
    own = pack_wheel(dist)
    own.rename(dist / own.name.replace("py3-none-any", f"{abi}-manylinux2014_{os.uname().machine}"))
    bundle = exported("state_ms", targets=("onnxruntime", "native"))
    python = f"{abi[2]}.{abi[3:5]}"
    kit = ("-o", tmp_path / "kit.tar.gz", "--target", "onnxruntime", "--dist", dist, "--python", python)
    succeed("deploy", bundle, *kit)
    script = unpack(tmp_path / "kit.tar.gz", tmp_path / "unpacked") / "install.sh"
    # what it says after it has looked at Python, before it installs anything
    folder = script.parent / "inside"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(["sh", script, folder], capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == 1
    assert ("is inside the kit" in done.stderr) == runs_here
    version = f"{python}{'+' if abi.endswith('abi3') else ''}"
    assert (f"this kit is for Python {version}, " in done.stderr) != runs_here


def test_a_wheel_that_does_not_serve_is_refused(exported: ExportFunction, tmp_path: Path) -> None:
    bundle = exported("state_ms", targets=("onnxruntime", "native"))
    kit = ("-o", tmp_path / "kit.tar.gz", "--target", "native")
    dist = tmp_path / "dist"
    assert f"--dist: {dist}: no such folder" in fail("deploy", bundle, *kit, "--dist", dist)[1]
    dist.mkdir()
    own = pack_wheel(dist)
    said = fail("deploy", bundle, *kit, "--dist", dist, "--platform", "aarch64", "--python", "3.10")[1]
    assert "no wheel of lram-export 0.1.0 with the engine of target native for Python 3.10 on aarch64" in said
    engine = dist / own.name.replace("py3-none-any", f"cp311-cp311-linux_{os.uname().machine}")
    own.rename(engine)
    here = ("--dist", dist, "--python", "3.11")
    assert "the engine of target 'native' is not in it" in fail("deploy", bundle, *kit, *here)[1]
    zipfile.ZipFile(engine, "w").close()
    assert "expected a wheel of lram-export" in fail("deploy", bundle, *kit, *here)[1]
    engine.write_text("no archive")
    assert "not a wheel" in fail("deploy", bundle, *kit, *here)[1]
    engine.rename(dist / "lram_export-0.1.0-cp311.whl")
    assert "expected the name of a wheel" in fail("deploy", bundle, *kit, *here)[1]
    assert not (tmp_path / "kit.tar.gz").exists()


def test_the_engine_here_is_not_packed_for_another_robot(exported: ExportFunction, tmp_path: Path) -> None:
    bundle = exported("state_ms", targets=("onnxruntime", "native"))
    kit = ("-o", tmp_path / "kit.tar.gz", "--target", "native")
    for other in (("--platform", "aarch64"), ("--python", "3.12")):
        said = fail("deploy", bundle, *kit, *other)[1]
        assert "the engine of 'native' that is installed here is for Python 3.11" in said and "--dist" in said
    assert not list(tmp_path.iterdir())


def test_what_the_engine_needs_of_the_c_library_is_asked_on_the_robot(exported: ExportFunction, tmp_path: Path) -> None:
    bundle = exported("state_ms", targets=("onnxruntime", "native"))
    succeed("deploy", bundle, "-o", tmp_path / "kit.tar.gz", "--target", "native", "-q")
    kit = unpack(tmp_path / "kit.tar.gz", tmp_path / "unpacked")
    (wheel,) = kit.glob("wheels/*.whl")
    script, needs = (kit / "install.sh").read_text(), engine_needs(wheel)
    assert f"\nglibc={needs.glibc}\n" in script and f"\nglibcxx={needs.glibcxx} #" in script


def test_the_same_package_packs_to_the_same_wheel(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert pack_wheel(tmp_path / "a").read_bytes() == pack_wheel(tmp_path / "b").read_bytes()


def test_the_control_loop_rehearses_and_counts_deadlines(kit: Path) -> None:
    arguments = [kit / "control_loop.py", kit / "arm.lram", "--target", "onnxruntime", "--rate", "200", "--steps", "40"]
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("40 steps at 200 Hz: p50 ") and " missed deadline" in done.stdout


def test_the_control_loop_stops_the_motors_whatever_happens(kit: Path, tmp_path: Path) -> None:
    (kit / "robot.py").write_text(
        "class Robot:\n"
        "    def reset(self): raise RuntimeError('encoder lost')\n"
        "    def observe(self): ...\n"
        "    def act(self, action): ...\n"
        f"    def close(self): open({str(tmp_path / 'stopped')!r}, 'w')\n"
    )
    arguments = [kit / "control_loop.py", kit / "arm.lram", "--target", "onnxruntime", "--robot", "robot"]
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr and (tmp_path / "stopped").exists()
    assert "error: the robot's reset() failed: " in done.stderr and "encoder lost" in done.stderr


def looped(kit: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The kit's loop at a rate no step keeps, so that it does not wait."""
    arguments = [kit / "control_loop.py", kit / "arm.lram", "--target", "onnxruntime", "--rate", "100000", *options]
    program = [sys.executable, *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, check=False, timeout=60)


ROBOT = """
import numpy as np


class Robot:
    def __init__(self):
        self.ticks, self.actions = 0, []

    def reset(self):
        return self.observe()

    def observe(self):
        self.ticks += 1
        observation = np.random.default_rng(self.ticks).standard_normal(204, np.float32)
        if {when}:
            observation[3] = np.{value}
        return observation

    def act(self, action):
        self.actions.append(action.tolist())

    def close(self):
        print("stopped after", len(self.actions), "held", sum(a == b for a, b in zip(self.actions, self.actions[1:])))
"""


def test_one_reading_that_fails_is_bridged(kit: Path) -> None:
    (kit / "robot.py").write_text(ROBOT.format(value="nan", when="self.ticks % 10 == 0"))
    done = looped(kit, "--robot", "robot", "--steps", "40", "--by", "hold")
    assert done.returncode == 0, done.stderr
    assert "40 steps" in done.stdout and "4 bridged steps, faults: not finite 4" in done.stdout
    assert "stopped after 40 held 4" in done.stdout  # sent again, each the one before
    assert "not finite: observation: expected finite values, got nan at [0, 3]; bridged" in done.stderr


def test_too_many_in_a_row_stop_the_motors_and_the_loop(kit: Path) -> None:
    (kit / "robot.py").write_text(ROBOT.format(value="inf", when="self.ticks > 5"))
    done = looped(kit, "--robot", "robot", "--bridge", "3", "--by", "hold")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: stopped: 4 steps in a row with a fault, the last: not finite: observation" in done.stderr
    assert "stopped after 8 held 3" in done.stdout and "8 steps" in done.stdout and "3 bridged steps" in done.stdout


def test_where_there_never_was_a_reading_nothing_is_sent(kit: Path) -> None:
    (kit / "robot.py").write_text(ROBOT.format(value="nan", when="True"))
    done = looped(kit, "--robot", "robot", "--bridge", "2")
    assert done.returncode == 1 and "stopped after 0 held 0" in done.stdout


def test_a_policy_that_wants_rewards_rehearses_with_the_recorded_ones(exported: ExportFunction, tmp_path: Path) -> None:
    bundle = exported("state_ms", feedback="observed", targets=("onnxruntime",))
    succeed("deploy", bundle, "-o", tmp_path / "kit.tar.gz", "-q")
    kit = unpack(tmp_path / "kit.tar.gz", tmp_path / "unpacked")
    next(kit.glob("*.lram")).rename(kit / "arm.lram")
    done = looped(kit, "--steps", "80", "--threads", "1")
    assert done.returncode == 0 and "80 steps" in done.stdout and "0 bridged steps" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rate", "0"), "--rate"),
        (("--rate", "nan"), "--rate"),
        (("--steps", "-1"), "--steps"),
        (("--threads", "0"), "--threads"),
        (("--bridge", "-1"), "--bridge"),
        (("--target", "nope"), "error: "),
    ],
)
def test_wrong_options_of_the_loop_are_one_line(kit: Path, options: tuple[str, ...], message: str) -> None:
    done = looped(kit, *options)
    assert done.returncode in (1, 2) and message in done.stderr and "Traceback" not in done.stderr


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
        (("-o", "kit.tar.gz", "--target", "openvino"), "no artifact for target 'openvino'"),
        (("-o", "nowhere/kit.tar.gz"), "does not exist; create it first"),
        (
            ("-o", "kit.tar.gz", "--python", "3.8"),
            "--python: expected 3.10 or a later one, such as 3.12, got '3.8'; where",
        ),
        (
            ("-o", "kit.tar.gz", "--python", "three"),
            "--python: expected 3.10 or a later one, such as 3.12, got 'three'",
        ),
        (("-o", "kit.tar.gz", "--glibc", "2.35"), "--glibc: only with --offline"),
        (("-o", "kit.tar.gz", "--offline", "--glibc", "2.9"), "--glibc: expected 2.17 or a later one"),
        (("-o", "kit.tar.gz", "--glibcxx", "3.4.30"), "--glibcxx: only with --offline"),
        (
            ("-o", "kit.tar.gz", "--offline", "--glibcxx", "12"),
            "--glibcxx: expected a version such as 3.4.30, got '12'",
        ),
        (("-o", "kit.tar.gz", "--language", "c"), "needs the folder with the library for the robot"),
        (("-o", "kit.tar.gz", "--language", "c", "--offline"), "--offline: a kit in C has no Python"),
        (("-o", "kit.tar.gz", "--language", "c", "--dist", "."), "no liblram 0.1.0 for"),
        (
            ("-o", "kit.tar.gz", "--language", "c", "--dist", ".", "--target", "onnxruntime"),
            "has target 'native' alone",
        ),
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
