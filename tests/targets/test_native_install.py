"""The native engine without Python: built, installed and used as `docs/native.md` says, by a C and a C++ program.

What is built stays in `build/installed`, so that a second run compiles only what changed.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lram_export import ExportOptions, StepPolicy, export_bundle, load_policy
from lram_export.bundle.bundle import Bundle
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.interpolation import BETWEEN, Between
from lram_export.runtimes import load_verifier
from lram_export.spec.interface import FieldInterface, Interface, Limits, Safety, Scaling
from lram_export.targets.native.format import stored_name
from tests.conftest import ExportFunction, load_golden
from tests.pages import read_blocks
from tests.rated import RATE, rated

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "native.md"
BUILT = ROOT / "build" / "installed"
HEADER = ROOT / "kernels" / "native" / "include"
LOOP_HEADERS = ROOT / "kernels" / "native" / "loop" / "include"
SYSTEM = {"fcntl.h", "unistd.h"}
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
    return {
        "c": BUILT / "c" / "run_bundle",
        "interface": BUILT / "c" / "interface",
        "cpp": BUILT / "cpp" / "control_loop",
    }


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

    def test_the_code_of_the_robots_page_compiles(self, tmp_path: Path) -> None:
        blocks = [block for block in read_blocks(PAGE.parent / "robot.md") if block.language == "cpp"]
        assert blocks
        flags = ("-std=c++17", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only")
        for block in blocks:
            (tmp_path / "page.cpp").write_text(block.code, encoding="utf-8")
            run("c++", *flags, f"-I{HEADER}", f"-I{LOOP_HEADERS}", tmp_path / "page.cpp")

    def test_the_loop_knows_nothing_of_the_engine_but_its_header(self) -> None:
        folder = LOOP_HEADERS.parent
        own = {str(path.relative_to(LOOP_HEADERS)) for path in LOOP_HEADERS.rglob("*.h")}
        own |= {path.name for path in (folder / "src").glob("*.h")} | {"lram.h"}
        for path in [*folder.rglob("*.h"), *folder.rglob("*.cpp")]:
            included = re.findall(r'^#include ["<](.*\.h)[">]', path.read_text(encoding="utf-8"), re.MULTILINE)
            odd = {name for name in included if name not in own and not name.startswith("sys/")} - SYSTEM
            assert not odd, path

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


class TestInterface:
    """What a policy says of its robot, and its safety envelope, from C."""

    def test_it_is_short(self) -> None:
        lines = (ROOT / "examples" / "c" / "interface.c").read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 60

    def test_of_a_module(self, programs: dict[str, Path], tmp_path: Path) -> None:
        module = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.constant_(module.weight, 0.25)
        interface = Interface(
            62.5,
            {"observation": FieldInterface(("lidar", "sonar"), ("m",), Limits(0.0, (30.0, 9.5)))},
            {
                "action": FieldInterface(
                    ("hip", "knee"),
                    ("N*m", "rad"),
                    Limits((-10.0, -60.0), (10.0, 60.0)),
                    safety=Safety((4.0, 8.0), 2, (1.0, 0.0)),
                )
            },
        )
        policy = StepPolicy(module, observation=2, action=2, interface=interface)
        export_bundle(policy, None, tmp_path / "arm.lram", ExportOptions(("native",), report=False))
        printed = run(programs["interface"], tmp_path / "arm.lram" / "native" / "model.lrn", "5")
        # the hip wants 50 and is clamped in every tick; so the third one stops the row, no faster than it may move
        assert printed.splitlines() == [
            "rate: 62.5 Hz",
            "observation 0: lidar [m] 0 to 30",
            "observation 1: sonar [m] 0 to 9.5",
            "action 0: hip [N*m] -10 to 10, by 4 a tick",
            "action 1: knee [rad] -60 to 60, by 8 a tick",
            *("10 50", "10 50", "6 42", "2 34", "1 26"),
            "action 0: clamped 5, slowed 2",
            "action 1: clamped 0, slowed 3",
            "action: stopped 3",
        ]

    def test_of_a_model_that_chooses_bins(self, programs: dict[str, Path], tmp_path: Path) -> None:
        golden = load_golden("state_ms")
        of = FieldInterface(limits=Limits(-1.0, 0.5), scaling=Scaling(2.0))
        options = ExportOptions(("native",), report=False, interface=Interface(None, {}, {"action": of}))
        bundle = export_bundle(load_checkpoint(golden.checkpoint), golden.task, tmp_path / "arm.lram", options)
        printed = run(programs["interface"], tmp_path / "arm.lram" / "native" / "model.lrn", "8").splitlines()
        spec, clamped = bundle.manifest.spec, 0
        before = load_checkpoint(golden.checkpoint).config.head.values() * np.float32(2)
        inputs = [np.full(t.shape, 0 if t.name == "is_first" else 100, np.float32) for t in spec.inputs]
        runtime = load_verifier("native", bundle.load_artifact("native"), 1)[0]
        lines = printed[printed.index("rate: 0 Hz") :]
        actions = [line.split() for line in lines if ":" not in line]
        for found in actions:
            output = runtime.step(*inputs)
            np.testing.assert_array_equal(np.array(found, np.float32), output["action"][0])
            wanted = before[output["action_logits"].argmax(-1)][0]
            np.testing.assert_array_equal(np.clip(wanted, -1, 0.5), output["action"][0])
            clamped = clamped + (wanted != output["action"][0])
        runtime.close()
        counts = [f"action {i}: clamped {count}, slowed 0" for i, count in enumerate(clamped)]
        assert len(actions) == 8 and sum(clamped) and lines[-1 - len(counts) :] == [*counts, "action: stopped 0"]


class TestCpp:
    SUMMARY = re.compile(
        r"(\d+) steps: p50 [\d.]+ ms, p99 [\d.]+ ms, largest [\d.]+ ms, ([\d,]+) missed deadlines?, "
        r"([\d,]+) bridged steps?"
    )

    def counts(self, printed: str) -> tuple[int, ...]:
        """Steps, missed deadlines, bridged steps."""
        found = self.SUMMARY.search(printed)
        assert found, printed
        return tuple(int(number.replace(",", "")) for number in found.groups())

    def test_the_loop_accounts_for_every_step(self, programs: dict[str, Path], model: Path) -> None:
        command = [programs["cpp"], model, "--rate", "100", "--seconds", "1", "--fault", "10"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        steps, _, bridged = self.counts(done.stdout)
        assert 0 < steps <= 101
        assert bridged == steps // 10
        assert f", faults: not finite {bridged}\n" in done.stdout
        assert (
            "warning: step 9: not finite: observation: expected finite values, got nan at element 0; b" in done.stderr
        )
        assert "step 11: good again, after 1 step with a fault\n" in done.stderr

    @pytest.mark.parametrize("by", ["coast", "hold"])
    def test_it_bridges_nothing_for_ever(self, by: str, programs: dict[str, Path], model: Path) -> None:
        command = [programs["cpp"], model, "--fault", "1", "--bridge", "3", "--by", by]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and self.counts(done.stdout)[2] == 3
        assert "\nerror: stopped: 4 steps in a row with a fault, the last: not finite: observation: " in done.stderr

    def test_a_run_is_saved_and_goes_on(self, programs: dict[str, Path], model: Path, tmp_path: Path) -> None:
        state = tmp_path / "run"
        command = [programs["cpp"], model, "--seconds", "0.1", "--state", state, "--resume"]
        for line in (f"warning: --resume: {state}: not there yet; an episode begins\n", ""):
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            assert done.stderr == line and [path.name for path in tmp_path.iterdir()] == ["run"]
        state.write_bytes(state.read_bytes()[:-4])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stderr == f"error: {state}: damaged: it is not what was saved\n"

    def test_a_file_takes_over_where_a_signal_asks_for_it(self, programs: dict[str, Path], model: Path) -> None:
        command = [programs["cpp"], model, "--seconds", "60", "--threads", "2"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                assert select.select([process.stderr], [], [], 1)[0] == []  # it runs
                process.send_signal(signal.SIGHUP)
                assert process.stderr.readline() == f"{model}: runs now\n"
                process.send_signal(signal.SIGTERM)
                printed, problems = process.communicate(timeout=30)
            finally:
                process.kill()
        assert process.returncode == 0 and problems == "" and self.counts(printed)[0] > 0

    def test_it_skips_the_ticks_it_cannot_keep(self, programs: dict[str, Path], model: Path) -> None:
        steps, missed, _ = self.counts(run(programs["cpp"], model, "--rate", "200000", "--seconds", "0.2"))
        assert missed > 0 and steps < 40_000

    @pytest.mark.parametrize(("told", "rate"), [((), RATE), (("--rate", "40"), 40)])
    def test_its_rate_is_the_bundles_unless_told_another(
        self,
        told: tuple[str, ...],
        rate: int,
        programs: dict[str, Path],
        exported: ExportFunction,
        shared_folder: Path,
    ) -> None:
        bundle = rated(exported, shared_folder, target="native") / "native" / "model.lrn"
        command = [programs["cpp"], bundle, "--seconds", "0.3", *told]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert f", {rate} Hz\n" in done.stdout and self.counts(done.stdout)[0] <= 0.3 * rate + 1
        line = f"warning: {bundle} was trained at {RATE} Hz, controlled at {rate} Hz\n"
        assert done.stderr == (line if told else "")

    def test_without_anyones_it_is_200(self, programs: dict[str, Path], model: Path) -> None:
        assert ", 200 Hz\n" in run(programs["cpp"], model, "--seconds", "0.01")

    @pytest.mark.parametrize("between", BETWEEN)
    def test_a_faster_controller_has_ticks_of_its_own(
        self, between: str, programs: dict[str, Path], model: Path
    ) -> None:
        options = ("--rate", "20", "--controller-rate", "100", "--between", between, "--fault", "5", "--seconds", "1")
        printed = run(programs["cpp"], model, *options)
        steps, _, bridged = self.counts(printed)
        assert f", 20 Hz, actions at 100 Hz ({between})\n" in printed
        assert steps <= 21 and bridged == steps // 5

    def test_what_it_sends_between_two_steps_is_what_python_does_to_the_bit(self, prefix: Path, tmp_path: Path) -> None:
        (tmp_path / "main.cpp").write_text(
            "#include <cstdio>\n#include <cstdlib>\n#include <cstring>\n#include <lram/loop/between.h>\n"
            "int main(int, char** given) {\n"
            '  const bool linear = std::strcmp(given[2], "linear") == 0;\n'
            "  lram::loop::Between between(std::atoi(given[1]), linear, LRAM_FLOAT32, 3);\n"
            "  for (std::vector<float> action(3); std::fread(action.data(), 4, 3, stdin) == 3;) {\n"
            "    between.aim(action.data());\n"
            "    for (int k = 0; k < between.ticks(); ++k) std::fwrite(between.at(k).data, 4, 3, stdout);\n"
            "  }\n}\n"
        )
        (archive,) = prefix.glob("lib*/**/liblram_loop.a")
        flags = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{prefix / 'include'}")
        run("c++", *flags, tmp_path / "main.cpp", archive, "-o", tmp_path / "program")
        drawn = np.random.default_rng(0).standard_normal((50, 3)) * 10.0 ** np.random.default_rng(1).integers(
            -40, 38, 3
        )
        actions = drawn.astype(np.float32)
        for ticks, way in ((1, "linear"), (7, "hold"), (7, "linear"), (10_000, "linear")):
            program = [tmp_path / "program", str(ticks), way]
            done = subprocess.run(program, input=actions.tobytes(), capture_output=True, check=True, timeout=60)
            between, expected = Between(ticks, way), []
            for action in actions[:2] if ticks > 10 else actions:
                between.aim(action)
                expected += [between.at(tick) for tick in range(ticks)]
            assert done.stdout.startswith(np.stack(expected).tobytes())

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

    def test_a_signal_interrupts_a_read_that_waits(self, prefix: Path, tmp_path: Path) -> None:
        source = tmp_path / "waits.cpp"
        example = ROOT / "examples" / "cpp" / "control_loop.cpp"
        source.write_text(
            f'#define main example\n#include "{example}"\n#undef main\n'
            "int main() {\n"
            "  char* none[] = {nullptr};\n"
            "  example(0, none);  // no model; but signals are caught from here on\n"
            "  int ends[2];\n  char byte;\n"
            "  if (pipe(ends) != 0) return 2;\n"
            "  end_after(0.2);\n"
            "  return read(ends[0], &byte, 1) == -1 && ending ? 0 : 3;\n}\n"
        )
        (tmp_path / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.18)\nproject(waits LANGUAGES CXX)\nfind_package(lram 0.1 REQUIRED)\n"
            "add_executable(waits waits.cpp)\ntarget_link_libraries(waits PRIVATE lram::loop)\n"
        )
        run("cmake", "-S", tmp_path, "-B", tmp_path / "built", f"-DCMAKE_PREFIX_PATH={prefix}")
        run("cmake", "--build", tmp_path / "built")
        run("timeout", "20", tmp_path / "built" / "waits")

    def test_what_goes_wrong_is_one_line(
        self, programs: dict[str, Path], model: Path, exported: ExportFunction, tmp_path: Path
    ) -> None:
        image = exported("image_m", targets=("native",)) / "native" / "model.lrn"
        for arguments, message in (
            ((), "MODEL: expected the path"),
            ((model, "--rate", "0"), "--rate: expected a positive number"),
            ((model, "--between", "linear"), "--between: only with --controller-rate"),
            (
                (model, "--controller-rate", "400", "--between", "cubic"),
                "--between: expected hold or linear, got cubic",
            ),
            ((model, "--controller-rate", "300"), "expected a whole multiple of the policy's 200 Hz, got 300 Hz"),
            ((model, "--pace", "3"), "--pace: unknown argument"),
            ((model, "--by", "luck"), "--by: expected coast or hold, got luck"),
            ((model, "--bridge", "0.5"), "--bridge: expected a whole number"),
            ((model, "--resume"), "--resume: only with --state"),
            ((model, "--state"), "--state: expected a value"),
            ((model, "--state", ""), "--state: expected a value"),
            ((model, "--state", "--resume"), "--state: expected a value, got --resume"),
            ((model, "--state", tmp_path / "none" / "run"), "expected a folder that exists"),
            ((model, "--state", tmp_path), "expected a file, got a folder"),
            ((model, "--fault", "0.5"), "--fault: expected a whole number, from 1"),
            ((model, "--fault", "1.5"), "--fault: expected a whole number"),
            ((model, "--threads", "1.5"), "--threads: expected a whole number"),
            ((tmp_path,), "expected a file"),
            ((image,), "expected a bundle with vector observations and continuous actions"),
        ):
            done = subprocess.run([programs["cpp"], *arguments], capture_output=True, text=True, check=False)
            assert done.returncode == 1 and done.stdout == ""
            assert len(done.stderr.splitlines()) == 1 and message in done.stderr
