"""The native engine without Python: built, installed and used as `docs/native.md` says, by a C and a C++ program.

What is built stays in `build/installed`, so that a second run compiles only what changed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lram_export import load_policy
from lram_export.bundle.bundle import Bundle
from lram_export.targets.native.format import stored_name
from tests.conftest import ExportFunction, load_golden
from tests.test_docs import read_blocks

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "native.md"
BUILT = ROOT / "build" / "installed"
HEADER = ROOT / "kernels" / "native" / "include"
LARGEST_LIBRARY = 2_000_000
NEEDED = {"libstdc++.so.6", "libm.so.6", "libc.so.6", "libpthread.so.0"}
LOADER = "ld-linux"
"""Part of the C library."""
STEPS = 20

# cmake may come with the environment instead of the system
TOOLS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
MISSING = [tool for tool in ("cmake", "make", "cc", "c++") if shutil.which(tool, path=TOOLS) is None]
pytestmark = [
    pytest.mark.environment,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


def run(*command: str | Path, folder: Path = ROOT) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, "PATH": TOOLS},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


def follow_the_page(folder: str, prefix: Path) -> None:
    """Run the block of `docs/native.md` that builds in some folder, with our folders in place of the page's."""
    blocks = [block.code for block in read_blocks(PAGE) if block.language == "console"]
    (code,) = [code for code in blocks if folder in code.splitlines()[0].split()]
    for line in code.splitlines():
        run(*line.replace(" build/", f" {BUILT}/").replace("/opt/lram", str(prefix)).split())


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the library is, after it was installed elsewhere and moved as a whole."""
    folder = tmp_path_factory.mktemp("installed")
    follow_the_page("build/lram", folder / "first")
    (folder / "first").rename(folder / "moved")
    return folder / "moved"


@pytest.fixture(scope="module")
def programs(prefix: Path) -> dict[str, Path]:
    follow_the_page("build/c", prefix)
    return {"c": BUILT / "c" / "run_bundle", "cpp": BUILT / "cpp" / "control_loop"}


@pytest.fixture
def model(exported: ExportFunction) -> Path:
    return exported("state_ms", targets=("native",)) / "native" / "model.lrn"


class TestLibrary:
    def test_it_is_small_and_needs_the_standard_libraries_only(self, prefix: Path) -> None:
        (library,) = (p for p in prefix.glob("lib*/**/liblram.so*") if not p.is_symlink())
        assert library.stat().st_size < LARGEST_LIBRARY
        needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-d", library)))
        assert {name for name in needed if not name.startswith(LOADER)} <= NEEDED

    def test_it_shows_what_the_header_declares_and_nothing_else(self, prefix: Path) -> None:
        (library,) = (p for p in prefix.glob("lib*/**/liblram.so*") if not p.is_symlink())
        shown = {line.split()[-1] for line in run("nm", "-D", "--defined-only", library).splitlines()}
        text = (prefix / "include" / "lram.h").read_text(encoding="utf-8")
        assert shown == set(re.findall(r"^LRAM_API [^;]*?\b(lram_\w+)\(", text, re.MULTILINE))

    @pytest.mark.parametrize(
        "compiler",
        [
            ("cc", "-x", "c", "-std=c99", "-Wstrict-prototypes"),
            ("cc", "-x", "c", "-std=c11"),
            ("c++", "-x", "c++", "-std=c++11"),
            ("c++", "-x", "c++", "-std=c++17"),
        ],
        ids=lambda compiler: compiler[3],
    )
    def test_the_header_compiles_without_a_warning(self, compiler: tuple[str, ...], tmp_path: Path) -> None:
        source = tmp_path / "header.source"
        newer = "LRAM_VERSION_AT_LEAST(0, 1, 1) || LRAM_VERSION_AT_LEAST(0, 2, 0) || LRAM_VERSION_AT_LEAST(1, 0, 0)"
        older = "LRAM_VERSION_AT_LEAST(0, 1, 0) && LRAM_VERSION_AT_LEAST(0, 0, 9)"
        source.write_text(
            f"#include <lram.h>\n#include <lram.h>\n#if {newer} || !({older})\n#error version\n#endif\n"
            "int main(void) { return lram_version()[0] == 0; }\n"
        )
        run(*compiler, "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{HEADER}", source)

    def test_the_code_of_the_page_compiles(self, tmp_path: Path) -> None:
        blocks = [block for block in read_blocks(PAGE) if block.language == "c"]
        assert blocks
        for block in blocks:
            (tmp_path / "page.c").write_text(block.code, encoding="utf-8")
            flags = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only")
            run("cc", *flags, f"-I{HEADER}", tmp_path / "page.c")

    def test_pkg_config_finds_it(self, prefix: Path, model: Path, tmp_path: Path) -> None:
        if shutil.which("pkg-config") is None:
            pytest.skip("not installed: pkg-config")
        (folder,) = (p.parent for p in prefix.glob("lib*/**/lram.pc"))
        flags = run("env", f"PKG_CONFIG_PATH={folder}", "pkg-config", "--cflags", "--libs", "lram").split()
        rpath = f"-Wl,-rpath,{folder.parent}"
        run("cc", "-std=c99", ROOT / "examples" / "c" / "run_bundle.c", *flags, rpath, "-o", tmp_path / "program")
        assert len(run(tmp_path / "program", model, "2").splitlines()) == 2

    def test_a_program_may_hold_the_library_itself(self, prefix: Path, model: Path, tmp_path: Path) -> None:
        (archive,) = prefix.glob("lib*/**/liblram.a")
        (tmp_path / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.18)\nproject(holds LANGUAGES C CXX)\nfind_package(lram 0.1 REQUIRED)\n"
            f"add_executable(holds {ROOT / 'examples' / 'c' / 'run_bundle.c'})\n"
            "target_link_libraries(holds PRIVATE lram::lram_static)\n"
            "set_target_properties(holds PROPERTIES LINKER_LANGUAGE CXX)\n"
        )
        run("cmake", "-S", tmp_path, "-B", tmp_path / "built", f"-DCMAKE_PREFIX_PATH={prefix}")
        run("cmake", "--build", tmp_path / "built")
        assert len(run(tmp_path / "built" / "holds", model, "2").splitlines()) == 2
        assert "liblram" not in run("readelf", "-d", tmp_path / "built" / "holds")
        plain = ("cc", "-std=c99", ROOT / "examples" / "c" / "run_bundle.c", f"-I{prefix / 'include'}", archive)
        run(*plain, "-lstdc++", "-lm", "-lpthread", "-o", tmp_path / "plain")
        assert len(run(tmp_path / "plain", model, "2").splitlines()) == 2


class TestC:
    def test_it_is_short(self) -> None:
        lines = (ROOT / "examples" / "c" / "run_bundle.c").read_text(encoding="utf-8").splitlines()
        assert len(lines) < 60

    @pytest.mark.parametrize(
        ("name", "precision", "batch"),
        [("state_ms", "fp32", 1), ("state_m", "int8", 2), ("image_m", "fp32", 1)],
    )
    def test_its_actions_are_those_of_python_to_the_bit(
        self, name: str, precision: str, batch: int, programs: dict[str, Path], exported: ExportFunction, tmp_path: Path
    ) -> None:
        golden = load_golden(name)
        options = [*golden.task_options, "--precision", precision]
        bundle = exported(name, targets=("native",), batch=batch, options=options)
        observations = np.stack([golden.trace["observations"][row : row + STEPS] for row in range(batch)], axis=1)
        observations.tofile(tmp_path / "observations.raw")
        printed = run(programs["c"], bundle / "native" / "model.lrn", str(STEPS), tmp_path / "observations.raw")
        with load_policy(bundle, "native", threads=1) as policy:
            expected = np.stack([policy.act(o if batch > 1 else o[0]).reshape(batch, -1) for o in observations])
        found = np.array([line.split() for line in printed.splitlines()], expected.dtype).reshape(expected.shape)
        np.testing.assert_array_equal(found, expected)

    def test_without_observations_they_are_0(self, programs: dict[str, Path], model: Path) -> None:
        printed = run(programs["c"], model, "3")
        spec = Bundle.open(model.parent.parent).manifest.spec
        with load_policy(model.parent.parent, "native", threads=1) as policy:
            expected = [policy.act(np.zeros(spec.inputs[0].shape[1:], np.float32)) for _ in range(3)]
        np.testing.assert_array_equal(np.array([line.split() for line in printed.splitlines()], np.float32), expected)

    def test_it_says_whose_actions_they_are(self, programs: dict[str, Path], model: Path) -> None:
        manifest = Bundle.open(model.parent.parent).manifest
        done = subprocess.run([programs["c"], model, "1"], capture_output=True, text=True, check=True)
        assert done.stderr == f"{stored_name(manifest.name)}, checkpoint {manifest.source['sha256']}\n"

    def test_what_goes_wrong_is_one_line(self, programs: dict[str, Path], model: Path, tmp_path: Path) -> None:
        cut = tmp_path / "cut.lrn"
        cut.write_bytes(model.read_bytes()[:-64])
        short, bad = tmp_path / "short.raw", tmp_path / "bad.raw"
        short.write_bytes(bytes(8))
        np.full(204 * 2, np.nan, np.float32).tofile(bad)
        for arguments, message in (
            ((), "usage: run_bundle"),
            ((tmp_path / "nowhere", "1"), "nowhere: cannot be opened: No such file or directory"),
            ((cut, "1"), "cut.lrn: file_bytes: expected"),
            ((model, "1", tmp_path / "nowhere"), "the observations cannot be opened"),
            ((model, "1", short), "the observations end too early"),
            ((model, "2", bad), "observation: expected finite values, got nan at element 0"),
        ):
            done = subprocess.run([programs["c"], *arguments], capture_output=True, text=True, check=False)
            assert done.returncode == 1 and done.stdout == ""
            assert len(done.stderr.splitlines()) == 1 and message in done.stderr


class TestCpp:
    SUMMARY = re.compile(r"(\d+) steps, (\d+) deadlines missed, (\d+) ticks skipped, (\d+) actions held")

    def counts(self, printed: str) -> tuple[int, ...]:
        found = self.SUMMARY.search(printed)
        assert found, printed
        return tuple(map(int, found.groups()))

    def test_the_loop_accounts_for_every_tick(self, programs: dict[str, Path], model: Path) -> None:
        printed = run(programs["cpp"], model, "--rate", "100", "--seconds", "1", "--fault", "10")
        steps, missed, skipped, held = self.counts(printed)
        assert missed <= skipped and steps + skipped >= 100 and steps <= 101
        assert held == steps // 10
        assert re.search(r"from tick to action +p50 [\d.]+ ms, p99 [\d.]+ ms, max [\d.]+ ms", printed)
        assert ("first held: observation: expected finite values, got nan at element 0" in printed) == (held > 0)

    def test_it_holds_no_action_for_ever(self, programs: dict[str, Path], model: Path) -> None:
        done = subprocess.run([programs["cpp"], model, "--fault", "1"], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: no action any more: observation: expected finite values, got nan")

    def test_it_skips_the_ticks_it_cannot_keep(self, programs: dict[str, Path], model: Path) -> None:
        printed = run(programs["cpp"], model, "--rate", "200000", "--seconds", "0.2")
        steps, missed, skipped, _ = self.counts(printed)
        assert missed > 0 and skipped >= missed and steps < 40_000

    def test_an_interrupt_ends_it_in_order(self, programs: dict[str, Path], model: Path) -> None:
        command = [programs["cpp"], model, "--seconds", "60"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                process.communicate(timeout=1)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
            try:
                printed, problems = process.communicate(timeout=30)
            finally:
                process.kill()
        assert process.returncode == 0 and problems == ""
        assert self.counts(printed)[0] > 0

    def test_what_goes_wrong_is_one_line(
        self, programs: dict[str, Path], model: Path, exported: ExportFunction, tmp_path: Path
    ) -> None:
        image = exported("image_m", targets=("native",)) / "native" / "model.lrn"
        for arguments, message in (
            ((), "MODEL: expected the path"),
            ((model, "--rate", "0"), "--rate: expected a positive number"),
            ((model, "--pace", "3"), "--pace: unknown argument"),
            ((tmp_path,), "expected a file"),
            ((image,), "expected a bundle with vector observations and continuous actions"),
        ):
            done = subprocess.run([programs["cpp"], *arguments], capture_output=True, text=True, check=False)
            assert done.returncode == 1 and done.stdout == ""
            assert len(done.stderr.splitlines()) == 1 and message in done.stderr
