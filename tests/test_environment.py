"""Fresh environments, built from a wheel as a user would: `make test-environment` (needs a package index)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import GOLDEN, ExportFunction, succeed

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.environment


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (path,) = folder.glob("lram_export-*.whl")
    return path


@pytest.fixture(scope="module")
def robot(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with only the base install and the `onnxruntime` extra; returns its bin folder."""
    return robot_with("onnxruntime", wheel, tmp_path_factory.mktemp("robot"))


@pytest.fixture(scope="module")
def openvino_robot(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the extra `openvino` instead."""
    return robot_with("openvino", wheel, tmp_path_factory.mktemp("openvino_robot"))


def robot_with(extra: str, wheel: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "venv", folder / "venv")
    bin_folder = folder / "venv" / "bin"
    constraints = ROOT / "constraints.txt"
    run(bin_folder / "pip", "install", "--quiet", "-c", constraints, f"lram-export[{extra}] @ file://{wheel}")
    return bin_folder


def run(*arguments: str | Path) -> str:
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_has_one_import_package_and_no_kernel_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"lram_export"}
    assert {"lram_export/exporters/onnxruntime.py", "lram_export/runtimes/onnxruntime.py"} <= set(names)
    assert {"lram_export/spec/tasks.json", "lram_export/py.typed"} <= set(names)
    assert not [n for n in names if n.endswith((".cpp", ".h", ".cu")) or "golden" in n]
    compiled = [n for n in names if n.endswith(".so")]  # the native engine, where there was a compiler
    assert all(n.startswith("lram_export/_native.") for n in compiled)


@pytest.mark.slow
@pytest.mark.parametrize("required", ["", "1"])
def test_an_engine_that_cannot_be_compiled_is_left_out_unless_it_is_required(required: str, tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": "false", "LRAM_REQUIRE_NATIVE": required}
    options = ("--quiet", "--no-deps", f"--config-settings=build-dir={tmp_path}/built", "--wheel-dir", str(tmp_path))
    program = [sys.executable, "-m", "pip", "wheel", *options, str(ROOT)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    built = [path.name.partition("-")[2].partition("-")[2] for path in tmp_path.glob("*.whl")]
    assert (done.returncode != 0, built) == ((True, []) if required else (False, ["py3-none-any.whl"])), done.stderr


def test_a_robot_has_no_torch_and_little_else(robot: Path) -> None:
    done = subprocess.run([str(robot / "python"), "-c", "import torch"], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "No module named 'torch'" in done.stderr
    installed = {line.split("==")[0].lower() for line in run(robot / "pip", "list", "--format=freeze").split()}
    assert {"numpy", "click", "rich", "safetensors", "onnxruntime"} <= installed
    assert not installed & {"torch", "onnx", "onnxscript", "xlstm", "omegaconf", "transformers"}


def test_a_robot_verifies_runs_and_benchmarks(robot: Path, exported: ExportFunction, tmp_path: Path) -> None:
    bundle = exported("state_ms")
    assert "passed" in run(robot / "lram-export", "verify", bundle)
    trace = GOLDEN / "state_ms" / "trace.npz"
    run(robot / "lram-export", "run", bundle, "--observations", trace, "-o", tmp_path / "actions.npz")
    assert (tmp_path / "actions.npz").is_file()
    assert "x floor" in run(robot / "lram-export", "bench", bundle, "--steps", "50")
    assert "onnxruntime" in run(robot / "lram-export", "doctor")
    run(robot / "lram-export", "deploy", bundle, "-o", tmp_path / "kit.tar.gz", "--target", "onnxruntime")


@pytest.mark.slow
def test_a_robot_with_openvino_alone_verifies_runs_and_benchmarks(
    openvino_robot: Path, exported: ExportFunction, tmp_path: Path
) -> None:
    installed = {line.split("==")[0].lower() for line in run(openvino_robot / "pip", "list", "--format=freeze").split()}
    assert "openvino" in installed and not installed & {"torch", "onnx", "onnxruntime", "onnxscript", "xlstm"}
    bundle = exported("state_ms")
    assert "passed" in run(openvino_robot / "lram-export", "verify", bundle, "--target", "openvino")
    trace = GOLDEN / "state_ms" / "trace.npz"
    run(openvino_robot / "lram-export", "run", bundle, "--observations", trace, "-o", tmp_path / "actions.npz")
    assert (tmp_path / "actions.npz").is_file()
    assert "x floor" in run(openvino_robot / "lram-export", "bench", bundle, "--steps", "50")


def test_a_robot_says_how_to_install_what_it_lacks(robot: Path, exported: ExportFunction) -> None:
    for arguments, extra in (
        (("verify", exported("state_ms"), "--target", "pytorch"), "export"),
        (("inspect", GOLDEN / "state_ms" / "model.zip"), "export"),
        (("bench", exported("state_ms"), "--target", "onnxruntime", "--baseline"), "export"),
    ):
        program = [str(a) for a in (robot / "lram-export", *arguments)]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        error = done.stderr.strip().splitlines()[-1]  # after the stages
        assert error.startswith("error: ") and f"pip install 'lram-export[{extra}]'" in error


@pytest.mark.slow
def test_the_base_install_alone_says_how_to_install_a_target(
    wheel: Path, tmp_path: Path, exported: ExportFunction
) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    bin_folder = tmp_path / "venv" / "bin"
    run(bin_folder / "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    bundle = exported("state_m", targets=("onnxruntime",))
    run(bin_folder / "lram-export", "inspect", bundle)
    program = [str(bin_folder / "lram-export"), "verify", str(bundle)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "pip install 'lram-export[onnxruntime]'" in done.stderr


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory, exported: ExportFunction) -> Path:
    """What a robot unpacks."""
    folder = tmp_path_factory.mktemp("kit")
    succeed("deploy", exported("state_ms"), "-o", folder / "kit.tar.gz", "--target", "onnxruntime")
    with tarfile.open(folder / "kit.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if path.is_dir())


@pytest.mark.slow
def test_a_kit_installs_verifies_and_rehearses(kit: Path, tmp_path: Path) -> None:
    """On the oldest Python, which JetPack 6 has, where there is one."""
    oldest = next(Path.home().glob(".pyenv/versions/3.10.*/bin"), None) or shutil.which("python3.10")
    path = f"{oldest if oldest is None or Path(oldest).is_dir() else Path(oldest).parent}:{os.environ['PATH']}"
    program = ["sh", str(kit / "install.sh"), str(tmp_path / "robot")]
    done = subprocess.run(program, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "robot" / "robot.py").write_text("# filled in\n")
    done = subprocess.run(program, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stdout + done.stderr  # an update, which keeps what the user wrote
    assert (tmp_path / "robot" / "robot.py").read_text() == "# filled in\n"
    python = tmp_path / "robot" / "venv" / "bin" / "python"
    assert "torch" not in run(python, "-m", "pip", "list")
    bundle = next((tmp_path / "robot").glob("*.lram"))
    loop = tmp_path / "robot" / "control_loop.py"
    assert "20 steps at 100 Hz" in run(python, loop, bundle, "--rate", "100", "--steps", "20")
    assert str(tmp_path / "robot") in (tmp_path / "robot" / "lram-control.service").read_text()


@pytest.mark.slow
def test_what_a_robot_runs_passes_its_tests_on_an_old_numpy(tmp_path: Path) -> None:
    """The oldest for this Python; `make test-wheels` runs a kit on older ones, on which nothing can be exported."""
    older = ("numpy==1.23.5", "ml_dtypes<0.6")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", *older)
    suite = ("policy/test_observations.py", "policy/test_envelope.py", "loop/test_control.py")
    program = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow", "--show-capture=no"]
    done = subprocess.run(
        [*program, f"--basetemp={tmp_path / 'tests'}", *(f"tests/{each}" for each in suite)],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(("python", "cuda"), [("3.10", "13"), ("3.12", "14")])
def test_all_a_jetson_needs_is_there_for_aarch64(kit: Path, python: str, cuda: str, tmp_path: Path) -> None:
    """JetPack 6 has Python 3.10 and CUDA 12, JetPack 7 has Python 3.12 and CUDA 13."""
    (wheel,) = kit.glob("wheels/*.whl")
    platforms = [f"--platform=manylinux{version}_aarch64" for version in ("2014", "_2_17", "_2_28", "_2_34")]
    resolved = run(
        sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--only-binary=:all:",
        f"--python-version={python}", *platforms, "--target", tmp_path,
        f"lram-export[tensorrt] @ file://{wheel}", f"cuda-bindings<{cuda}",
    )  # fmt: skip
    assert "cuda-bindings" in resolved and "torch" not in resolved
