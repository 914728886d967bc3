"""Kits for robots without a network: which wheels go along, and what is said where one cannot be had.

The package index is a folder of hand-made wheels; pip is the real one.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from lram_export.deploy.offline import unmet
from lram_export.deploy.robot import Robot
from tests.conftest import ExportFunction, fail, succeed
from tests.deploy.test_deploy import unpack

ARM = "cp310-cp310-manylinux_2_17_aarch64"


def write_wheel(folder: Path, name: str, tags: str = "py3-none-any", requires: tuple[str, ...] = ()) -> Path:
    """A wheel of ``NAME-VERSION`` that says what it requires, and holds nothing."""
    path = folder / f"{name}-{tags}.whl"
    package, version = name.split("-")
    head = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
    with zipfile.ZipFile(path, "w") as archive:
        requirements = "".join(f"Requires-Dist: {each}\n" for each in requires)
        archive.writestr(f"{name}.dist-info/METADATA", head + requirements)
        archive.writestr(f"{name}.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tags}\n")
        archive.writestr(f"{name}.dist-info/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the base install needs, for ARM; pip knows nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    write_wheel(folder, "numpy-1.26.4", ARM)
    write_wheel(folder, "numpy-2.9.0", "cp310-cp310-manylinux_2_35_aarch64")  # for a newer C library
    write_wheel(folder, "numpy-2.8.0", "cp311-cp311-manylinux_2_17_aarch64")
    write_wheel(folder, "click-8.2", requires=('colorama; platform_system == "Windows"',))
    write_wheel(folder, "safetensors-0.5.0", "cp38-abi3-manylinux_2_17_aarch64")
    # the Python that runs pip has no need of it
    write_wheel(folder, "rich-14.0", requires=('older-python; python_version < "3.11"',))
    write_wheel(folder, "older_python-1.0")
    write_wheel(folder, "mcap-1.3")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def test_all_that_the_robot_needs_is_in_the_kit_with_its_digest(
    index: Path, exported: ExportFunction, tmp_path: Path
) -> None:
    bundle = exported("state_ms", targets=("onnxruntime", "native"))
    (dist := tmp_path / "dist").mkdir()
    write_own(dist, ARM)
    options = ("--target", "native", "--offline", "--platform", "aarch64", "--python", "3.10", "--dist", dist)
    result = succeed("deploy", bundle, "-o", tmp_path / "kit.tar.gz", *options, "--json")
    document = json.loads(result.stdout)
    packed = {each["name"]: each for each in document["wheels"]}
    assert {name.split("-")[0]: name.split("-")[1] for name in packed} == {
        "lram_export": "0.1.0", "numpy": "1.26.4", "click": "8.2", "rich": "14.0", "safetensors": "0.5.0",
        "older_python": "1.0", "mcap": "1.3",
    }  # fmt: skip
    kit = unpack(tmp_path / "kit.tar.gz", tmp_path / "unpacked")
    assert {path.name for path in (kit / "wheels").glob("*.whl")} == set(packed)
    for name, each in packed.items():
        content = (kit / "wheels" / name).read_bytes()
        assert (each["size"], each["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert f"{each['sha256']}  {name}\n" in (kit / "wheels" / "SHA256SUMS").read_text()
        assert name in (kit / "README.txt").read_text()
    assert document["wheels_size"] == sum(each["size"] for each in packed.values())
    script = (kit / "install.sh").read_text()
    assert "offline=yes " in script and "python=3.10 " in script and "glibc=2.31\n" in script


def write_own(folder: Path, tags: str, engine: bytes = b"") -> Path:
    """This package as a wheel for a robot, with something that stands for its engine."""
    from importlib.metadata import distribution

    path = folder / f"lram_export-0.1.0-{tags}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("lram_export/_native.cpython-310-aarch64-linux-gnu.so", engine)
        archive.writestr(
            "lram_export-0.1.0.dist-info/METADATA", distribution("lram-export").read_text("METADATA") or ""
        )
        archive.writestr("lram_export-0.1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: {tags}\n")
        archive.writestr("lram_export-0.1.0.dist-info/RECORD", "")
    return path


def test_what_cannot_be_had_is_named_and_nothing_is_left(index: Path, exported: ExportFunction, tmp_path: Path) -> None:
    bundle = exported("state_ms", targets=("onnxruntime", "native"))
    before = set(tmp_path.iterdir())
    robot = ("--platform", "aarch64", "--python", "3.10", "--glibc", "2.35")
    kit = ("-o", tmp_path / "kit.tar.gz", "--target", "onnxruntime", "--offline")
    code, line = fail("deploy", bundle, *kit, *robot)
    assert code == 1 and "--offline: pip found no wheel of 'onnxruntime>=1.21" in line
    assert line.endswith("for Python 3.10 on aarch64 with glibc 2.35")
    assert set(tmp_path.iterdir()) == before


def test_an_engine_that_needs_a_newer_c_library_than_the_robots_is_refused(
    exported: ExportFunction, tmp_path: Path
) -> None:
    bundle = exported("state_ms", targets=("onnxruntime", "native"))
    (dist := tmp_path / "dist").mkdir()
    own = write_own(dist, "cp310-cp310-linux_aarch64", b"\x7fELF\0GLIBC_2.17\0GLIBC_2.34\0GLIBC_2.4\0GLIBC_PRIVATE\0")
    robot = ("--platform", "aarch64", "--python", "3.10", "--dist", dist)
    kit = ("-o", tmp_path / "kit.tar.gz", "--target", "native", "--offline")
    line = fail("deploy", bundle, *kit, *robot)[1]
    assert f"--glibc: the engine in {own.name} needs glibc 2.34, and the robot may have 2.31; " in line
    assert not (tmp_path / "kit.tar.gz").exists()


def test_an_engine_that_needs_a_newer_cpp_library_than_the_robots_is_refused(
    index: Path, exported: ExportFunction, tmp_path: Path
) -> None:
    bundle = exported("state_ms", targets=("onnxruntime", "native"))
    (dist := tmp_path / "dist").mkdir()
    own = write_own(dist, "cp310-cp310-linux_aarch64", b"\x7fELF\0GLIBC_2.17\0GLIBCXX_3.4.21\0CXXABI_1.3.13\0")
    robot = ("--platform", "aarch64", "--python", "3.10", "--dist", dist)
    kit = ("-o", tmp_path / "kit.tar.gz", "--target", "native", "--offline")
    line = fail("deploy", bundle, *kit, *robot)[1]
    needs = f"--glibcxx: the engine in {own.name} needs libstdc++ with GLIBCXX_3.4.29, and the robot may have 3.4.28; "
    assert needs in line and not (tmp_path / "kit.tar.gz").exists()
    succeed("deploy", bundle, *kit, *robot, "--glibcxx", "3.4.29")
    succeed("deploy", bundle, *kit, *robot, "--glibc", "2.35", "--force")  # Ubuntu 22.04 has a newer one
    script = unpack(tmp_path / "kit.tar.gz", tmp_path / "unpacked") / "install.sh"
    assert "\nglibcxx=3.4.29 #" in script.read_text()


def test_conditions_are_those_of_the_robot(tmp_path: Path) -> None:
    requires = ('more; extra == "native"', 'old<2,>=1; python_version < "3.11"', 'x86; platform_machine == "x86_64"')
    write_wheel(tmp_path, "lram_export-0.1.0", requires=requires)
    assert unmet(tmp_path, ("native",), Robot("aarch64", "3.10")) == ["more", "old<2,>=1"]
    assert unmet(tmp_path, ("other", "more"), Robot("x86_64", "3.11")) == ["x86"]
    write_wheel(tmp_path, "more-1.0", requires=("old[new]",))
    write_wheel(tmp_path, "old-1.0", requires=('third; platform_machine == "aarch64" and extra == "new"',))
    assert unmet(tmp_path, ("native",), Robot("aarch64", "3.11")) == ["third"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("/usr/bin/python3: No module named pip", "--offline: no pip in "),
        ("ERROR: Cannot install these\nERROR: ResolutionImpossible: look there", "glibc 2.31: Cannot install these"),
    ],
)
def test_what_pip_says_is_one_line(
    answer: str, said: str, exported: ExportFunction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program := tmp_path / "python").write_text(f"#!/bin/sh\necho '{answer}' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    bundle = exported("state_ms", targets=("onnxruntime", "native"))
    assert said in fail("deploy", bundle, "-o", tmp_path / "kit.tar.gz", "--target", "onnxruntime", "--offline")[1]
    assert not (tmp_path / "kit.tar.gz").exists()


def test_a_kit_whose_wheels_were_damaged_does_not_install(exported: ExportFunction, tmp_path: Path) -> None:
    succeed("deploy", exported("state_ms", targets=("onnxruntime", "native")), "-o", tmp_path / "kit.tar.gz", "-q")
    kit = unpack(tmp_path / "kit.tar.gz", tmp_path / "unpacked")
    (wheel,) = kit.glob("wheels/*.whl")
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"?")
    done = subprocess.run(["sh", kit / "install.sh", tmp_path / "robot"], capture_output=True, text=True)
    assert done.returncode == 1 and "a file is not what it was when the kit was packed" in done.stderr
    assert not (tmp_path / "robot").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--isolate",), "--isolate: unknown option; it takes --isolated"),
        (("one", "two"), "two: one folder is enough, and one is named already"),
        (("--isolated",), "--isolated: JetPack's TensorRT is in the system's Python and nowhere else"),
    ],
)
def test_wrong_options_of_the_script_are_one_line(
    options: tuple[str, ...], said: str, exported: ExportFunction, tmp_path: Path
) -> None:
    succeed("deploy", exported("state_ms", targets=("onnxruntime", "native")), "-o", tmp_path / "kit.tar.gz", "-q")
    kit = unpack(tmp_path / "kit.tar.gz", tmp_path / "unpacked")
    script = kit / "install.sh"
    script.write_text(script.read_text().replace("target=onnxruntime\n", "target=tensorrt\n"))
    done = subprocess.run(["sh", script, *options], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr == f"install.sh: {said}\n"


def test_a_kit_for_a_newer_c_library_says_so(exported: ExportFunction, tmp_path: Path) -> None:
    succeed("deploy", exported("state_ms", targets=("onnxruntime", "native")), "-o", tmp_path / "kit.tar.gz", "-q")
    script = unpack(tmp_path / "kit.tar.gz", tmp_path / "unpacked") / "install.sh"
    script.write_text(script.read_text().replace("\nglibc=\n", "\nglibc=2.99\n"))
    done = subprocess.run(["sh", script, tmp_path / "robot"], capture_output=True, text=True)
    assert done.returncode == 1 and "this kit may need glibc 2.99, this machine has an older one" in done.stderr


def test_a_kit_for_a_newer_cpp_library_says_so(exported: ExportFunction, tmp_path: Path) -> None:
    succeed("deploy", exported("state_ms", targets=("onnxruntime", "native")), "-o", tmp_path / "kit.tar.gz", "-q")
    script = unpack(tmp_path / "kit.tar.gz", tmp_path / "unpacked") / "install.sh"
    text = script.read_text()
    for needed, refused in (("3.4.11", False), ("3.4.99", True)):
        # what comes next ends it, too: the wheels are not those
        script.write_text(text.replace("\nglibcxx= ", f"\nglibcxx={needed} "))
        (script.parent / "wheels" / "SHA256SUMS").write_text("")
        done = subprocess.run(["sh", script, tmp_path / "robot"], capture_output=True, text=True)
        said = f"this kit needs libstdc++ with GLIBCXX_{needed}, this machine has an older one or none"
        assert done.returncode == 1 and (said in done.stderr) is refused and len(done.stderr.splitlines()) == 1


class TestInC:
    """A kit without Python; `make test-wheels` compiles and runs one."""

    CHECK = "liblram-0.1.0/share/lram/examples/check/check.cpp"

    def library(self, folder: Path, *names: str, link: str = "liblram.so.0.1", policy: str = "manylinux2014") -> Path:
        folder.mkdir(exist_ok=True)
        path = folder / f"liblram-0.1.0-{policy}_aarch64.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for name in names:
                archive.addfile(tarfile.TarInfo(name))
            archive.addfile(tarfile.TarInfo(self.CHECK))
            linked = tarfile.TarInfo("liblram-0.1.0/lib/liblram.so")
            linked.type, linked.linkname = tarfile.SYMTYPE, link
            archive.addfile(linked)
        return path

    def test_it_has_the_library_and_the_target_native_alone(self, exported: ExportFunction, tmp_path: Path) -> None:
        library = self.library(tmp_path / "dist", "liblram-0.1.0/include/lram.h", "liblram-0.1.0/lib/liblram.so.0.1")
        bundle = exported("state_ms", targets=("onnxruntime", "native"))
        options = ("--language", "c", "--platform", "aarch64", "--dist", tmp_path / "dist", "--json")
        document = json.loads(succeed("deploy", bundle, "-o", tmp_path / "kit.tar.gz", *options).stdout)
        assert document["library"] == library.name
        kit = unpack(tmp_path / "kit.tar.gz", tmp_path / "unpacked")
        assert (kit / "include" / "lram.h").is_file() and (kit / "lib" / "liblram.so").is_symlink()
        (packed,) = kit.glob("*.lram")
        succeed("verify", packed, "--target", "native")
        readme = (kit / "README.txt").read_text()
        assert f"{packed.name}/native/model.lrn" in readme and "aarch64" in readme and "@" not in readme

    def test_its_readme_says_what_it_needs_and_names_what_is_there(
        self, exported: ExportFunction, tmp_path: Path
    ) -> None:
        bundle = exported("state_ms", targets=("onnxruntime", "native"))
        options = ("--language", "c", "--platform", "aarch64", "--dist", tmp_path / "dist", "--force", "-q")
        for policy, said in (
            ("linux", "a glibc as new as where its library was built"),
            ("manylinux_2_34", "glibc 2.34 or later"),
            ("manylinux_2_28", "glibc 2.28 or later"),  # of several the one for the oldest
        ):
            self.library(tmp_path / "dist", "liblram-0.1.0/include/lram.h", policy=policy)
            succeed("deploy", bundle, "-o", tmp_path / "kit.tar.gz", *options)
            shutil.rmtree(tmp_path / "unpacked", ignore_errors=True)
            readme = (unpack(tmp_path / "kit.tar.gz", tmp_path / "unpacked") / "README.txt").read_text()
            assert said in readme
        named = re.search(r"the class (\w+) in control_loop\.cpp", readme)
        example = Path(__file__).parents[2] / "examples" / "cpp" / "control_loop.cpp"
        assert named and f"class {named[1]} : public lram::loop::Robot" in example.read_text()

    @pytest.mark.parametrize("name", ["liblram-0.1.0/../../outside", "/etc/passwd", "liblram-0.1.0"])
    def test_an_archive_that_reaches_outside_is_refused(
        self, name: str, exported: ExportFunction, tmp_path: Path
    ) -> None:
        self.library(tmp_path / "dist", name)
        bundle = exported("state_ms", targets=("onnxruntime", "native"))
        options = ("--language", "c", "--platform", "aarch64", "--dist", tmp_path / "dist")
        assert "does not belong into a library" in fail("deploy", bundle, "-o", tmp_path / "kit.tar.gz", *options)[1]
        self.library(tmp_path / "dist", "liblram-0.1.0/include/lram.h", link="/etc/passwd")
        assert "does not belong into a library" in fail("deploy", bundle, "-o", tmp_path / "kit.tar.gz", *options)[1]
        assert not (tmp_path / "kit.tar.gz").exists()

    def test_what_is_no_archive_is_refused(self, exported: ExportFunction, tmp_path: Path) -> None:
        self.library(tmp_path / "dist").write_text("no archive")
        bundle = exported("state_ms", targets=("onnxruntime", "native"))
        options = ("--language", "c", "--platform", "aarch64", "--dist", tmp_path / "dist")
        assert "not an archive of liblram" in fail("deploy", bundle, "-o", tmp_path / "kit.tar.gz", *options)[1]
