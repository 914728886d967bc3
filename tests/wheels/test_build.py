"""How wheels are called, which headers they may be compiled with, and what a finished one is looked at for."""

from __future__ import annotations

import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from wheels import build, licences, pythons
from wheels.check import check_library, check_wheel, problems
from wheels.matrix import KERNELS, Build, Library, WheelError, builds
from wheels.packing import pack

ROOT = Path(__file__).parent.parent.parent


def test_there_is_a_wheel_for_every_python_and_machine() -> None:
    assert [str(b) for b in builds()] == [
        "cp310-cp310-manylinux2014_x86_64",
        "cp310-cp310-manylinux2014_aarch64",
        "cp311-cp311-manylinux2014_x86_64",
        "cp311-cp311-manylinux2014_aarch64",
        "cp312-abi3-manylinux2014_x86_64",
        "cp312-abi3-manylinux2014_aarch64",
    ]


def test_the_suffix_of_a_module_is_the_machines_it_is_for() -> None:
    assert Build("3.10", "aarch64").suffix == ".cpython-310-aarch64-linux-gnu.so"
    assert Build("3.12", "aarch64").suffix == Build("3.12", "x86_64").suffix == ".abi3.so"


def test_every_kernel_of_the_engine_is_looked_for() -> None:
    sources = {path.stem.removeprefix("isa_") for path in (ROOT / "kernels/native/src/kernels").glob("isa_*.cpp")}
    assert {name for names in KERNELS.values() for name in names} == sources


def headers(folder: Path, version: tuple[int, int]) -> Path:
    folder.mkdir(exist_ok=True)
    major, minor = version
    lines = ("/* Version */", f"#define PY_MAJOR_VERSION\t{major}", f"#define PY_MINOR_VERSION\t{minor}", "")
    (folder / "patchlevel.h").write_text("\n".join(lines))
    return folder


def python_with(folder: Path, include: Path) -> Path:
    """A program that answers as a Python whose headers lie there."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\necho {include}\n")
    program.chmod(0o755)
    return program


class TestHeaders:
    def test_they_say_of_which_python_they_are(self, tmp_path: Path) -> None:
        assert pythons.version_of(headers(tmp_path / "include", (3, 10))) == "3.10"

    def test_those_of_another_python_are_refused(self, tmp_path: Path) -> None:
        python = python_with(tmp_path, headers(tmp_path / "include", (3, 11)))
        assert pythons.find_headers(python, "3.11") == tmp_path / "include"
        with pytest.raises(WheelError, match=r"include: expected the headers of Python 3\.10, found 3\.11"):
            pythons.find_headers(python, "3.10")

    def test_without_any_that_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(WheelError, match=r"expected the headers of Python 3\.10, found none"):
            pythons.find_headers(python_with(tmp_path, tmp_path), "3.10")

    def test_what_the_compiler_finds_is_one_line(self, tmp_path: Path) -> None:
        compiler = tmp_path / "compiler"
        compiler.write_text(
            "#!/bin/sh\necho 'in file' >&2\necho 'fits.cpp:1: error: static assertion: threads' >&2\nexit 1\n"
        )
        compiler.chmod(0o755)
        with pytest.raises(WheelError) as error:
            pythons.check_headers(tmp_path, Build("3.10", "aarch64"), compiler, {})
        assert str(error.value) == f"{tmp_path}: do not fit aarch64: fits.cpp:1: error: static assertion: threads"


def test_a_python_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    with pytest.raises(WheelError, match=r"no Python 3\.99 here"):
        pythons.find_python("3.99")


def test_a_python_that_does_not_run_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shims, chosen = tmp_path / "shims", tmp_path / "versions" / "3.10.13" / "bin"
    for folder, script in ((shims, "exit 127"), (chosen, "echo 3.10")):
        folder.mkdir(parents=True)
        (folder / "python3.10").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "python3.10").chmod(0o755)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(shims))
    assert pythons.find_python("3.10") == chosen / "python3.10"


def wheel(folder: Path, build: Build, **content: bytes) -> Path:
    path = folder / f"lram_export-0.1.0-{build.tags}-{build.policy}.manylinux_2_17_{build.machine}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(f"lram_export/{name}", data)
    return path


class TestFinishedWheels:
    build = Build("3.12", "aarch64")

    def test_one_without_the_engine_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(
            WheelError, match=r"expected lram_export/_native\.abi3\.so and no other library, found none"
        ):
            check_wheel(wheel(tmp_path, self.build, policy=b""), self.build, ())

    def test_one_with_another_builds_engine_is_refused(self, tmp_path: Path) -> None:
        found = wheel(tmp_path, self.build, **{"_native.cpython-312-x86_64-linux-gnu.so": b""})
        assert "found lram_export/_native.cpython-312-x86_64-linux-gnu.so" in next(problems(found, self.build, ()))

    def test_one_of_another_name_is_refused(self, tmp_path: Path) -> None:
        found = wheel(tmp_path, Build("3.11", "aarch64"))
        assert next(problems(found, self.build, ())) == "expected a name with cp312-abi3-manylinux2014_aarch64"

    def test_one_that_names_a_place_here_is_refused(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("wheels.check.problems_of_engine", lambda *_: ())
        found = wheel(tmp_path, self.build, **{"_native.abi3.so": b"\0/home/me/lram/api.cpp\0"})
        places = (Path("/home/me"), Path("/home/you"))
        (problem,) = (each for each in problems(found, self.build, places) if "licence" not in each)
        assert problem == "lram_export/_native.abi3.so names /home/me, a place here"

    def test_one_without_the_licences_of_what_is_in_it_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("wheels.check.problems_of_engine", lambda *_: ())
        found = wheel(tmp_path, self.build, **{"_native.abi3.so": b""})
        missing = [f"the licence of {name} is not in it" for name in (*licences.ZIG, *licences.PYTHON)]
        assert list(problems(found, self.build, ())) == missing and "the licence of nanobind is not in it" in missing
        with zipfile.ZipFile(found, "a") as archive:
            archive.writestr("lram_export-0.1.0.dist-info/METADATA", "Name: lram-export\n\nText\n")
            archive.writestr("lram_export-0.1.0.dist-info/RECORD", "lram_export-0.1.0.dist-info/METADATA,sha256=x,1\n")
        (licensed := tmp_path / "licensed").mkdir()
        texts = dict.fromkeys((*licences.ZIG, *licences.PYTHON), b"As you like\n")
        licences.add(found, texts, licensed / found.name)
        assert not list(problems(licensed / found.name, self.build, ()))
        with zipfile.ZipFile(licensed / found.name) as archive:
            record = archive.read("lram_export-0.1.0.dist-info/RECORD").decode().splitlines()
            metadata = archive.read("lram_export-0.1.0.dist-info/METADATA").decode()
        assert metadata.startswith("Name: lram-export\nLicense-File: libc++.txt\n") and metadata.endswith("\n\nText\n")
        assert len([line for line in record if "METADATA," in line]) == 1 and "sha256=x" not in "".join(record)
        assert len([line for line in record if "/licenses/" in line]) == len(texts)


class TestLicences:
    def test_they_are_those_of_the_packages_that_built_it(self, tmp_path: Path) -> None:
        for place in licences.ZIG.values():
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place).write_text(f"of {place}")
        assert licences.of_zig(tmp_path)["libunwind"] == b"of lib/libunwind/LICENSE.TXT"
        (tmp_path / "LICENSE").unlink()
        with pytest.raises(WheelError, match=r"LICENSE: the licence of what is compiled in is not there"):
            licences.of_zig(tmp_path)

    def test_that_of_the_hash_map_stands_in_its_header(self, tmp_path: Path) -> None:
        with pytest.raises(WheelError, match="expected one nanobind with its licence, found 0"):
            licences.of_nanobind(tmp_path)
        text = tmp_path / "nanobind-3.1.0.dist-info" / "licenses" / "LICENSE"
        header = tmp_path / "nanobind" / "ext" / "robin_map" / "include" / "tsl" / "robin_map.h"
        for path, content in ((text, "BSD"), (header, "/**\n * MIT\n *\n * Permission is hereby granted\n */\n#if")):
            path.parent.mkdir(parents=True)
            path.write_text(content)
        found = licences.of_nanobind(tmp_path)
        assert found == {"nanobind": b"BSD", "robin-map": b"MIT\n\nPermission is hereby granted\n"}
        header.write_text("#pragma once")
        with pytest.raises(WheelError, match=r"expected a licence at the head of nanobind's robin_map\.h, found none"):
            licences.of_nanobind(tmp_path)


class TestLibrary:
    def installed(self, folder: Path) -> Path:
        config = folder / "lib" / "cmake" / "lram" / "lramConfigVersion.cmake"
        config.parent.mkdir(parents=True)
        config.write_text('set(PACKAGE_VERSION "0.1.0")\n')
        (folder / "lib" / "liblram.so.0.1.0").write_bytes(b"library")
        (folder / "lib" / "liblram.so").symlink_to("liblram.so.0.1.0")
        return folder

    def test_it_is_packed_with_examples_and_licences(self, tmp_path: Path) -> None:
        path = pack(self.installed(tmp_path / "installed"), Library("aarch64"), {"zig": b"MIT"}, tmp_path)
        assert path.name == "liblram-0.1.0-manylinux2014_aarch64.tar.gz"
        with tarfile.open(path) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
            assert (
                archive.getmember("liblram-0.1.0-manylinux2014_aarch64/lib/liblram.so").linkname == "liblram.so.0.1.0"
            )
        share = {
            "licenses/LICENSE",
            "licenses/zig.txt",
            "examples/c/run_bundle.c",
            "examples/check/check.cpp",
            "examples/cpp/control_loop.cpp",
        }
        assert {f"share/lram/{name}" for name in share} <= names

    def test_the_same_content_gives_the_same_archive(self, tmp_path: Path) -> None:
        packed = []
        for name in ("a", "b"):
            (folder := tmp_path / name / "out").mkdir(parents=True)
            packed.append(pack(self.installed(tmp_path / name / "in"), Library("x86_64"), {"zig": b"MIT"}, folder))
        assert packed[0].read_bytes() == packed[1].read_bytes()

    def test_none_and_one_that_names_a_place_here_are_refused(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with pytest.raises(WheelError, match=r"expected one lib/liblram\.so\.VERSION, found 0"):
            check_library(tmp_path, Library("x86_64"), ())
        for looks in ("problems_of_engine", "problems_of_links"):
            monkeypatch.setattr(f"wheels.check.{looks}", lambda *_: ())
        folder = self.installed(tmp_path / "installed")
        check_library(folder, Library("x86_64"), (Path("/home/me"),))
        (folder / "lib" / "lram.pc").write_text("prefix=/home/me/lram")
        with pytest.raises(WheelError, match=r"lram\.pc names /home/me, a place here"):
            check_library(folder, Library("x86_64"), (Path("/home/me"),))


class TestCommandLine:
    def test_what_goes_wrong_is_one_line(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
        monkeypatch.setenv("PATH", str(tmp_path))
        assert build.main([str(tmp_path / "dist")]) == 1
        assert capsys.readouterr().err.startswith("wheels: no Python 3.10 here")
        assert not (tmp_path / "dist").exists()

    def test_a_failed_command_is_told_with_its_first_error(self, tmp_path: Path) -> None:
        program = tmp_path / "compile"
        program.write_text("#!/bin/sh\necho compiling\necho 'a.cpp:3: error: no such type'\nexit 2\n")
        program.chmod(0o755)
        with pytest.raises(WheelError, match=r"a\.cpp:3: error: no such type \(all of it: .*/log\)$"):
            build.run((program,), {}, tmp_path / "log")


def test_the_wrapper_of_zig_translates_the_architectures_the_engine_asks_for() -> None:
    asked = set(re.findall(r"-march=(\S+?)\)", (ROOT / "kernels/native/CMakeLists.txt").read_text(encoding="utf-8")))
    for march in asked:
        done = subprocess.run(
            [ROOT / "wheels" / "zig-c++", f"-march={march}", "-c", "a b.cpp"],
            capture_output=True, text=True, check=True, env={"LRAM_ZIG": "/bin/echo"},
        )  # fmt: skip
        assert done.stdout.startswith("c++ -mcpu=generic") and done.stdout.endswith(" -c a b.cpp\n")
    assert asked
