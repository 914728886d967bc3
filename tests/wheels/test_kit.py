"""Kits of release wheels, installed and run with the network cut off: `make test-wheels`, after `make wheels`.

What a kit installs beside is downloaded when it is made, so this needs a package index; the robot has none.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests import emulated_arm
from tests.conftest import ExportFunction, load_golden, succeed
from tests.wheels.test_release import ACT, DIST, ROOT, check
from wheels.matrix import KERNELS
from wheels.pythons import find_python

MOST = 40_000_000
"""Bytes of a kit for `native` with all its wheels; numpy is most of it."""
STEPS = 24
CUT_OFF = ("unshare", "--net") if os.geteuid() == 0 else ("unshare", "--map-root-user", "--net")
CONTROL = """
import sys
import numpy as np
from lram_export import load_policy

bundle, observations = sys.argv[1:]
with load_policy(bundle, "native") as policy:
    for observation in np.load(observations):
        action = policy.act(observation.tolist())
    state = policy.state()
    again = policy.act(observation)
    policy.load_state(state)
    assert np.array_equal(policy.act(observation), again)
    try:
        policy.act([[1.0, 2.0], [3.0]])
    except ValueError as error:
        assert str(error) == "observation: expected an array, got a list whose parts differ in length", error
print(np.__version__, np.__file__)
"""
pytestmark = pytest.mark.wheels


@pytest.fixture(scope="module", autouse=True)
def network_can_be_cut_off() -> None:
    done = subprocess.run([*CUT_OFF, "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"this machine lets nobody cut off the network: {done.stderr.strip()}")


@pytest.fixture(scope="module")
def bundle(exported: ExportFunction) -> Path:
    golden = load_golden("state_ms")
    return exported("state_ms", targets=("native",), options=[*golden.task_options, "--precision", "int8"])


@pytest.fixture(scope="module")
def observations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("observations") / "observations.npy"
    np.save(path, load_golden("state_ms").trace["observations"][:STEPS])
    return path


def cut_off(*command: str | Path, **environment: str) -> str:
    """What a command says that has no network."""
    program = [*CUT_OFF, *map(str, command)]
    variables = {**os.environ, "PYTHONWARNINGS": "error", **environment}
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd="/", env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def unpack(archive: Path) -> Path:
    folder = archive.parent / archive.name.partition(".")[0]
    with tarfile.open(archive) as kit:
        kit.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


def make_kit(bundle: Path, folder: Path, *options: str) -> Path:
    """An unpacked kit for a robot without a network."""
    path = folder / "kit.tar.gz"
    kit = ("-o", path, "--target", "native", "--offline", "--dist", DIST, "--json", *options)
    document = json.loads(succeed("deploy", bundle, *kit).stdout)
    print(f"{' '.join(options)}: {len(document['wheels'])} wheels, {document['size'] / 1e6:.1f} MB in all")
    assert document["size"] < MOST
    return unpack(path)


def test_without_a_network_there_is_none() -> None:
    code = "import socket; socket.create_connection(('127.0.0.1', 1), 1)"
    with pytest.raises(AssertionError, match="unreachable"):
        cut_off(sys.executable, "-c", code)


@pytest.fixture(scope="module")
def python() -> Path:
    """That of Ubuntu 22.04."""
    return find_python("3.10")


@pytest.fixture(scope="module")
def kit(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_kit(bundle, tmp_path_factory.mktemp("kit"), "--platform", "x86_64", "--python", "3.10")


class TestX86:
    def install(self, kit: Path, python: Path, folder: Path, *options: str, **environment: str) -> Path:
        """Run the kit's script; returns the folder that it installed into."""
        first = f"{python.parent}:{os.environ['PATH']}"
        said = cut_off("sh", kit / "install.sh", *options, folder, PATH=first, PYTHONWARNINGS="", **environment)
        assert "passed" in said and "Installed in" in said
        return folder

    def test_it_leaves_the_robots_numpy_as_it_is(
        self, kit: Path, python: Path, observations: Path, tmp_path: Path
    ) -> None:
        user = {"PYTHONUSERBASE": str(tmp_path / "user")}
        pip = (python, "-m", "pip", "install", "--quiet", "--user", "--only-binary=:all:", "numpy==1.24.4")
        subprocess.run(list(map(str, pip)), check=True, env={**os.environ, **user})
        robot = self.install(kit, python, tmp_path / "robot", **user)
        program, packed = robot / "venv" / "bin" / "python", next(robot.glob("*.lram"))
        said = cut_off(program, "-c", CONTROL, packed, observations, **user)
        assert said.startswith("1.24.4 ") and str(tmp_path / "user") in said
        loop = (program, robot / "control_loop.py", packed, "--target", "native", "--rate", "200", "--steps", "50")
        assert "50 steps at 200 Hz" in cut_off(*loop, **user)

    def test_isolated_it_brings_its_own_and_runs_on_every_numpy(
        self, kit: Path, python: Path, observations: Path, tmp_path: Path
    ) -> None:
        robot = self.install(kit, python, tmp_path / "robot", "--isolated")
        program, packed = robot / "venv" / "bin" / "python", next(robot.glob("*.lram"))
        assert str(robot) in cut_off(program, "-c", CONTROL, packed, observations)
        for version in ("1.21.2", "1.24.4", "1.26.4", "2.0.2"):
            older = tmp_path / version
            pip = (python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--target", older)
            subprocess.run([*map(str, pip), f"numpy=={version}"], check=True)
            # what numpy warns of: lists that are ragged, before 1.24
            there = {"PYTHONPATH": str(older), "PYTHONWARNINGS": "error" if version > "1.24" else ""}
            assert cut_off(program, "-c", CONTROL, packed, observations, **there).startswith(f"{version} {older}")
            cut_off(program, "-m", "lram_export", "verify", packed, "--target", "native", **there)
            loop = ("-m", "lram_export", "loop", packed, "--target", "native", "--rate", "200", "--steps", "20")
            saved = tmp_path / f"state-{version}.npz"
            assert "20 steps" in cut_off(program, *loop, "--state", saved, **there)
            assert "20 steps" in cut_off(program, *loop, "--state", saved, "--resume", **there)
            np.savez(tmp_path / "recorded.npz", observations=np.load(observations))
            run = ("-m", "lram_export", "run", packed, "--observations", tmp_path / "recorded.npz", "--force")
            cut_off(program, *run, "-o", tmp_path / "actions.npz", **there)
            with np.load(tmp_path / "actions.npz") as file:
                assert "actions" in file.files and "allow_pickle" not in file.files

    def test_what_a_robot_with_too_old_a_numpy_is_told(self, kit: Path, python: Path, tmp_path: Path) -> None:
        (old := tmp_path / "user" / "lib" / "python3.10" / "site-packages" / "numpy").mkdir(parents=True)
        (old / "__init__.py").write_text("__version__ = '1.19.5'\n")
        environment = {"PYTHONUSERBASE": str(tmp_path / "user"), "PATH": f"{python.parent}:{os.environ['PATH']}"}
        program = [*CUT_OFF, "sh", str(kit / "install.sh"), str(tmp_path / "robot")]
        done = subprocess.run(program, capture_output=True, text=True, env={**os.environ, **environment})
        assert done.returncode == 1 and "beside numpy 1.19.5 of this robot, which stays as it is" in done.stderr
        assert "sh install.sh --isolated" in done.stderr.splitlines()[-1]


def test_on_an_emulated_arm_robot(bundle: Path, observations: Path, tmp_path: Path) -> None:
    """Its pip installs the wheels of the kit. The script itself would need a whole emulated system."""
    kit = make_kit(bundle, tmp_path, "--platform", "aarch64", "--python", "3.11")
    robot = ROOT / "build" / "wheels" / "robot-3.11"
    emulated_arm.prepare(robot, "3.11", emulated_arm.BASE_PACKAGES)
    program = ("qemu-aarch64-static", "-L", robot / "root", robot / "root" / "usr" / "bin" / "python3.11")
    subprocess.run(["sha256sum", "--check", "--status", "SHA256SUMS"], cwd=kit / "wheels", check=True)
    site, pip_folder = tmp_path / "site", tmp_path / "pip"
    (place,) = find_spec("pip").submodule_search_locations  # type: ignore[union-attr]
    shutil.copytree(place, pip_folder / "pip")
    (own,) = (kit / "wheels").glob("lram_export-*.whl")
    install = ("-m", "pip", "install", "--quiet", "--no-index", "--find-links", kit / "wheels", "--target", site)
    cut_off(*program, *install, f"{own}[native]", PYTHONPATH=str(pip_folder), PYTHONWARNINGS="")
    here = {"PYTHONPATH": str(site), "QEMU_CPU": "cortex-a76"}
    packed = next(kit.glob("*.lram"))
    assert "passed" in cut_off(*program, "-m", "lram_export", "verify", packed, "--target", "native", **here)
    loop = (kit / "control_loop.py", packed, "--target", "native", "--rate", "20", "--steps", "20")
    assert "20 steps at 20 Hz" in cut_off(*program, *loop, **here)
    assert str(site) in cut_off(*program, "-c", CONTROL, packed, observations, **here)
    cut_off(*program, "-c", ACT, observations, tmp_path / "found.npz", packed, **here)
    check(tmp_path / "found.npz", {"quantized": packed}, observations, KERNELS["aarch64"])


class TestInC:
    """A kit without Python: built by the line that its README has, and run where it was unpacked."""

    def build(self, kit: Path, compiler: str) -> Path:
        for line in (each.strip() for each in (kit / "README.txt").read_text().splitlines() if "g++" in each):
            program = line.replace("g++", f"{compiler} -Wall -Wextra -Werror", 1)
            subprocess.run(["sh", "-c", program], check=True, cwd=kit)
        return kit / "control_loop"

    def unpacked(self, bundle: Path, folder: Path, machine: str) -> Path:
        path = folder / "kit.tar.gz"
        succeed("deploy", bundle, "-o", path, "--language", "c", "--dist", DIST, "--platform", machine)
        return unpack(path)

    def test_it_is_compiled_and_runs(self, bundle: Path, observations: Path, tmp_path: Path) -> None:
        kit = self.unpacked(bundle, tmp_path, "x86_64")
        model = next(kit.glob("*.lram")) / "native" / "model.lrn"
        program = self.build(kit, "g++")
        moved = shutil.move(kit, tmp_path / "moved")
        model = Path(moved) / model.relative_to(kit)
        assert self.answer in cut_off(Path(moved) / program.name, model, *self.options)
        assert self.proof in cut_off(Path(moved) / "check", model, Path(moved) / "reference.lrs")

    def test_it_is_cross_compiled_and_runs_on_an_emulated_arm_robot(self, bundle: Path, tmp_path: Path) -> None:
        kit = self.unpacked(bundle, tmp_path, "aarch64")
        program = self.build(kit, "aarch64-linux-gnu-g++")
        emulator = ("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu")
        model = next(kit.glob("*.lram")) / "native" / "model.lrn"
        said = cut_off(*emulator, program, model, *self.options, QEMU_CPU="cortex-a76")
        assert self.answer in said
        checked = (kit / "check", model, kit / "reference.lrs")
        assert self.proof in cut_off(*emulator, *checked, QEMU_CPU="cortex-a76")

    @pytest.mark.parametrize("language", ["c", "check", "cpp"])
    def test_cmake_finds_it(self, language: str, bundle: Path, tmp_path: Path) -> None:
        kit = self.unpacked(bundle, tmp_path, "x86_64")
        cmake = Path(sys.executable).parent / "cmake"
        source, build = kit / "share" / "lram" / "examples" / language, tmp_path / "build"
        subprocess.run([cmake, "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={kit}"], check=True)
        subprocess.run([cmake, "--build", build], check=True)

    options = ("--seconds", "1")
    answer = " steps"
    proof = "verdict  passed"
