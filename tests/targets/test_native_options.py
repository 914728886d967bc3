"""The target `native` on a machine: kernels, pinning, spinning, locking, the format of the state; versions."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tomllib
from numpy.typing import NDArray

from lram_export import load_policy
from lram_export.bundle.bundle import Bundle
from lram_export.describe import human_bytes
from lram_export.errors import UsageError
from lram_export.interpolation import Between
from lram_export.loop.control import Loop, LoopOptions
from lram_export.policy import Policy
from lram_export.system.huge_pages import huge_pages
from lram_export.targets.native.options import (
    CPUS,
    HUGE_PAGES,
    IN_HUGE_PAGES,
    LOCK_MEMORY,
    SPIN_MICROSECONDS,
    STATE_FORMAT,
    VARIABLES,
    NativeOptions,
)
from lram_export.verification.verify import verify_targets
from tests.conftest import ExportFunction, fail, load_golden, succeed

_native = pytest.importorskip("lram_export._native", reason="the native engine was not compiled")
ROOT = Path(__file__).parent.parent.parent
STEPS = 40


@pytest.fixture
def bundle(exported: ExportFunction) -> Path:
    return exported("state_ms", targets=("native",))


def shell_python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def logits(bundle: Path, threads: int = 1) -> np.ndarray:
    inputs = np.random.default_rng(0).standard_normal((STEPS, 204)).astype(np.float32)
    with load_policy(bundle, "native", threads=threads) as policy:
        found = []
        for observation in inputs:
            policy.act(observation)
            found.append(policy.action_logits)
    return np.stack(found)


class TestVariables:
    def test_without_any_the_engine_has_its_defaults(self) -> None:
        assert NativeOptions.from_environment({}) == NativeOptions()
        assert NativeOptions.from_environment(dict.fromkeys(VARIABLES, "")) == NativeOptions()

    def test_threads_that_shall_not_spin_sleep_at_once_unless_the_environment_says_otherwise(self) -> None:
        assert NativeOptions.from_environment({}, spin=False) == NativeOptions(spin_microseconds=0)
        given = {"LRAM_NATIVE_SPIN_MICROSECONDS": "70"}
        assert NativeOptions.from_environment(given, spin=False) == NativeOptions(spin_microseconds=70)

    def test_all_are_understood(self) -> None:
        given = {
            STATE_FORMAT: "lazy-fp16",
            CPUS: "3,1-2,7",
            SPIN_MICROSECONDS: "0",
            LOCK_MEMORY: "1",
            HUGE_PAGES: "all",
        }
        assert NativeOptions.from_environment(given) == NativeOptions("lazy-fp16", (3, 1, 2, 7), 0, True, "all")

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            (STATE_FORMAT, "fp16", "LRAM_NATIVE_STATE_FORMAT: expected float32 or lazy-fp16, got 'fp16'"),
            (CPUS, "two", "LRAM_NATIVE_CPUS: expected numbers of CPUs such as 2,3 or 2-3, got 'two'"),
            (CPUS, "3-2", "got '3-2'"),
            (CPUS, "1,,2", "got '1,,2'"),
            (CPUS, "-1", "got '-1'"),
            (SPIN_MICROSECONDS, "-5", "LRAM_NATIVE_SPIN_MICROSECONDS: expected a number from 0 to 1000000, got '-5'"),
            (SPIN_MICROSECONDS, "1000001", "got '1000001'"),
            (SPIN_MICROSECONDS, "1e3", "got '1e3'"),
            (HUGE_PAGES, "1", "LRAM_NATIVE_HUGE_PAGES: expected 0, state or all, got '1'"),
            (LOCK_MEMORY, "yes", "LRAM_NATIVE_LOCK_MEMORY: expected 0 or 1, got 'yes'"),
            ("LRAM_NATIVE_PINNING", "1", "LRAM_NATIVE_PINNING: unknown; the target `native` knows: LRAM_NATIVE_STATE"),
        ],
    )
    def test_what_makes_no_sense_is_wrong_use_in_one_line(
        self, name: str, value: str, message: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, value)
        code, line = fail("verify", bundle)
        assert code == 2 and message in line

    def test_a_cpu_that_is_not_there_is_named(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(CPUS, "1023")
        code, line = fail("verify", bundle, "--threads", "2")
        assert code == 2 and "cpus: no thread can be pinned to CPU 1023" in line

    def test_too_many_threads_are_named(self, bundle: Path) -> None:
        with pytest.raises(UsageError, match="threads: expected 1 to 1024, got 2000"):
            load_policy(bundle, "native", threads=2000)

    def test_none_of_them_changes_what_is_computed(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = logits(bundle)
        monkeypatch.setenv(CPUS, ",".join(map(str, sorted(os.sched_getaffinity(0)))))
        monkeypatch.setenv(SPIN_MICROSECONDS, "0")
        for value in IN_HUGE_PAGES:
            monkeypatch.setenv(HUGE_PAGES, value)
            np.testing.assert_array_equal(logits(bundle, threads=2), expected)

    def test_threads_are_pinned_where_the_variable_says(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cpu = max(os.sched_getaffinity(0))
        monkeypatch.setenv(CPUS, str(cpu))
        before = set(Path("/proc/self/task").iterdir())
        with load_policy(bundle, "native", threads=2):
            time.sleep(0.2)  # threads that helped to load are gone to Python before they are to the system
            started = set(Path("/proc/self/task").iterdir()) - before
            assert {frozenset(os.sched_getaffinity(int(task.name))) for task in started} == {frozenset({cpu})}

    def test_memory_is_locked(self, bundle: Path) -> None:
        program = (
            f"from lram_export import load_policy\npolicy = load_policy({str(bundle)!r}, 'native', threads=1)\n"
            "print(next(l for l in open('/proc/self/status') if l.startswith('VmLck')).split()[1])"
        )
        locked = {}
        for value in ("0", "1"):
            done = shell_python(program, **{LOCK_MEMORY: value})
            if value == "1" and "cannot be locked" in done.stderr:
                pytest.skip("this process may not lock memory")
            assert done.returncode == 0, done.stderr
            locked[value] = 1024 * int(done.stdout)
        spec = Bundle.open(bundle).manifest.spec
        assert locked["0"] == 0
        assert locked["1"] >= spec.state_bytes + (bundle / "native" / "model.lrn").stat().st_size


class TestHugePages:
    """What comes of asking for them; whether the system gives any, kernels/native/tests/test_pages.cpp tests."""

    def test_bench_says_what_lies_in_them(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(HUGE_PAGES, "0")
        arguments = ("bench", bundle, "--steps", "10", "--threads", "1", "--unpaced")
        (result,) = json.loads(succeed(*arguments, "--json").stdout)["results"]
        memory = result["memory"]
        assert memory["weights"] == (bundle / "native" / "model.lrn").stat().st_size
        assert memory["state"] > Bundle.open(bundle).manifest.spec.state_bytes
        assert memory["huge_state"] == memory["huge_weights"] == 0
        line = f"in huge pages: 0 B of {human_bytes(memory['state'])} of state, 0 B of {human_bytes(memory['weights'])}"
        assert f"native fp32, {line} of weights" in succeed(*arguments).stdout

    def test_a_large_batch_lies_in_them_where_the_system_gives_any(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        offered = huge_pages()
        if offered is None or offered.setting == "never" or offered.disabled or offered.size > 2**21:
            pytest.skip("this system gives no huge pages of 2 MiB to those that ask")
        rows = 8 * 2**20 // Bundle.open(bundle).manifest.spec.state_bytes + 1
        for value in IN_HUGE_PAGES:
            monkeypatch.setenv(HUGE_PAGES, value)
            with load_policy(bundle, "native", threads=1, batch=rows) as policy:
                memory = policy.runtime.memory()  # type: ignore[attr-defined]
            assert memory.state > 8 * 2**20
            assert (memory.huge_state > 0) == (value != "0")
            assert memory.huge_state <= memory.state

    def test_doctor_says_what_the_system_offers(self) -> None:
        offered = huge_pages()
        found = json.loads(succeed("doctor", "--json").stdout)["machine"]["huge_pages"]
        assert found == (None if offered is None else dataclasses.asdict(offered))
        assert "huge pages" in succeed("doctor").stdout


class TestLazyState:
    """Half the bytes of the large matrices, and another tolerance."""

    @pytest.fixture(autouse=True)
    def lazy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(STATE_FORMAT, "lazy-fp16")

    @pytest.mark.parametrize("name", ["state_m", "state_ms", "image_m"])
    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_it_is_verified_within_its_tolerance(self, name: str, precision: str, exported: ExportFunction) -> None:
        options = [*load_golden(name).task_options, "--precision", precision]
        bundle = exported(name, targets=("native",), options=options)
        result = verify_targets(Bundle.open(bundle), ["native"], threads=1)["native"]
        assert result.passed, result.failures()
        assert result.state_format == "lazy-fp16" and result.tolerance.relative
        assert result.relative_error is not None and result.relative_error > 1e-5

    def test_bench_times_it_to_the_action_and_until_free_and_profiles_it(self, bundle: Path) -> None:
        given = ("bench", bundle, "--steps", "20", "--threads", "1", "--profile")
        (result,) = json.loads(succeed(*given, "--json").stdout)["results"]
        assert result["parity"]["passed"] and result["parity"]["state_format"] == "lazy-fp16"
        assert result["leaves_work"] and result["free_ms"] > result["p50_ms"] > 0
        stages = result["stages_ms"]
        assert list(stages) == ["dense", "memory", "other", "wait", "leftover"]
        assert all(stages[name] > 0 for name in ("dense", "memory", "other", "leftover"))
        assert sum(stages.values()) < 1.5 * result["max_ms"]
        said = succeed(*given).stdout
        assert "free ms" in said and "where the time goes" in said

    def test_no_result_depends_on_when_it_is_settled(self, bundle: Path) -> None:
        observation = np.full(204, 0.1, np.float32)
        with (
            load_policy(bundle, "native", threads=1) as never,
            load_policy(bundle, "native", threads=2) as always,
        ):
            for _ in range(STEPS):
                never.act(observation)
                always.act(observation)
                always.settle()
                np.testing.assert_array_equal(never.action_logits, always.action_logits)
            saved, settled = never.state(), always.state()
            assert saved.keys() == settled.keys()
            for name, values in saved.items():
                np.testing.assert_array_equal(values, settled[name])

    def test_a_control_loop_settles_each_step_when_its_action_is_sent(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        happened: list[str] = []
        settle = Policy.settle

        def told(policy: Policy) -> None:
            happened.append("settled")
            settle(policy)

        class Robot:
            def reset(self) -> NDArray[np.float32]:
                return np.zeros(204, np.float32)

            observe = reset

            def act(self, action: NDArray[np.float32]) -> None:
                happened.append("sent")

            def close(self) -> None:
                pass

        monkeypatch.setattr(Policy, "settle", told)
        with load_policy(bundle, "native", threads=1) as policy:
            Loop(policy, Robot(), LoopOptions(rate=1000, between=Between(1), steps=3)).run()
        assert happened == ["sent", "settled"] * 3

    def test_its_state_moves_to_float32_and_back(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        observation = np.zeros(204, np.float32)
        with load_policy(bundle, "native", threads=1) as lazy:
            monkeypatch.delenv(STATE_FORMAT)
            with load_policy(bundle, "native", threads=1) as full:
                for _ in range(STEPS):
                    lazy.act(observation)
                full.load_state(lazy.state())
                full.act(observation)
                lazy.act(observation)
                np.testing.assert_allclose(full.action_logits, lazy.action_logits, rtol=0, atol=1e-2)
                lazy.load_state(full.state())
                full.act(observation)
                lazy.act(observation)
                np.testing.assert_allclose(full.action_logits, lazy.action_logits, rtol=0, atol=1e-2)


class TestExportedStateFormat:
    """The bundle says how its state is kept; the environment has the last word."""

    @pytest.fixture
    def lazy(self, exported: ExportFunction) -> Path:
        options = [*load_golden("state_ms").task_options, "--precision", "int8", "--state-format", "lazy-fp16"]
        return exported("state_ms", targets=("native", "onnxruntime"), options=options)

    def test_it_is_kept_so_and_was_verified_so(self, lazy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        entries = {entry.target: entry for entry in Bundle.open(lazy).manifest.artifacts}
        formats = {target: entry.parity.state_format for target, entry in entries.items() if entry.parity}
        assert formats == {"native": "lazy-fp16", "onnxruntime": "float32"}
        assert entries["native"].tools["format"] == "7"
        with load_policy(lazy, "native") as policy:
            assert policy.runtime.state_format == "lazy-fp16"  # type: ignore[attr-defined]
        monkeypatch.setenv(STATE_FORMAT, "float32")
        with load_policy(lazy, "native") as policy:
            assert policy.runtime.state_format == "float32"  # type: ignore[attr-defined]

    def test_bench_times_every_format_and_compares_them(self, lazy: Path) -> None:
        given = ("bench", lazy, "--target", "native", "--steps", "20", "--threads", "1", "--state-formats")
        said = succeed(*given).stdout
        assert re.search(r"native lazy-fp16 int8: to the action [0-9.]+, until free [0-9.]+, ", said)

    def test_a_manifest_that_says_otherwise_is_refused(self, lazy: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.lram"
        shutil.copytree(lazy, other)
        manifest = json.loads((other / "manifest.json").read_text())
        (entry,) = (e for e in manifest["artifacts"] if e["target"] == "native")
        entry["parity"]["state_format"] = "float32"
        (other / "manifest.json").write_text(json.dumps(manifest))
        code, line = fail("verify", other, "--target", "native")
        assert code == 1 and "model.lrn: keeps its state in lazy-fp16, was verified in float32" in line

    @pytest.mark.parametrize(
        ("name", "targets", "here", "said"),
        [
            (
                "mamba_state",
                "native",
                "",
                "--state-format lazy-fp16: this policy has no matrices in its state",
            ),
            ("state_ms", "onnxruntime", "", "--state-format lazy-fp16: only with --target native"),
            (
                "state_ms",
                "native",
                "float32",
                f"{STATE_FORMAT}: float32 here, but --state-format is lazy-fp16",
            ),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, name: str, targets: str, here: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        golden, output = load_golden(name), tmp_path / "x.lram"
        monkeypatch.setenv(STATE_FORMAT, here)
        options = ("--target", targets, "--state-format", "lazy-fp16", *golden.task_options)
        code, line = fail("export", golden.checkpoint, "-o", output, *options)
        assert code == 2 and said in line
        assert not output.exists()

    @pytest.mark.parametrize(
        ("here", "told"), [("", "as each bundle says"), ("lazy-fp16", f"lazy-fp16 as {STATE_FORMAT}")]
    )
    def test_doctor_tells_what_the_environment_says_and_how_to_compare(
        self, here: str, told: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(STATE_FORMAT, here)
        assert json.loads(succeed("doctor", "--json").stdout)["native_state_format"] == (here or None)
        said = " ".join(succeed("doctor").stdout.split())
        assert told in said and "bench BUNDLE --state-formats" in said
        monkeypatch.setenv(STATE_FORMAT, "fp16")
        code, line = fail("doctor")
        assert code == 2 and line.startswith(f"error: {STATE_FORMAT}: expected float32 or lazy-fp16, got 'fp16'")

    def test_formats_are_compared_only_where_there_are_several(self, exported: ExportFunction) -> None:
        code, line = fail("bench", exported("mamba_state", targets=("native",)), "--state-formats")
        assert code == 2 and "has no matrices in its state" in line
        code, line = fail("bench", exported("state_ms", targets=("onnxruntime",)), "--state-formats")
        assert code == 2 and line.startswith("error: --state-formats: expected the target native among those")


class TestKernels:
    def test_doctor_shows_them(self) -> None:
        kernels = json.loads(succeed("doctor", "--json").stdout)["native_kernels"]
        assert kernels == {"used": _native.chosen_instruction_set(), "supported": _native.instruction_sets()}
        assert kernels["supported"][-1] == "plain"
        assert f"{kernels['used']} (this processor runs: {', '.join(kernels['supported'])})" in succeed("doctor").stdout

    def test_doctor_says_that_plain_ones_are_slow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LRAM_ISA", "plain")
        assert "plain as LRAM_ISA says, slow" in succeed("doctor").stdout
        monkeypatch.delenv("LRAM_ISA")
        monkeypatch.setattr(_native, "instruction_sets", lambda: ["plain"])
        monkeypatch.setattr(_native, "chosen_instruction_set", lambda: "plain")
        assert "plain: slow, this processor has no vector instructions" in succeed("doctor").stdout

    @pytest.mark.parametrize("command", ["doctor", "verify"])
    def test_one_that_is_unknown_is_wrong_use_in_one_line(
        self, command: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LRAM_ISA", "mmx")
        code, line = fail(command, *([bundle] if command == "verify" else []))
        assert code == 2
        assert re.fullmatch(r"error: LRAM_ISA: expected one of [a-z0-9, ]+, plain, got mmx", line)

    def test_one_that_this_processor_lacks_is_named(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LRAM_ISA", "mmx")
        _, line = fail("doctor")
        known = set(re.sub(r".*one of |, got.*", "", line).split(", "))
        absent = sorted(known - set(_native.instruction_sets()))
        if not absent:
            pytest.skip("this processor supports every kernel")
        monkeypatch.setenv("LRAM_ISA", absent[0])
        code, line = fail("verify", bundle)
        assert (code, line) == (2, f"error: LRAM_ISA: this processor does not support {absent[0]}")


def test_all_that_has_a_version_has_the_same() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    native = ROOT / "kernels" / "native"
    for path, pattern in (
        (native / "CMakeLists.txt", r"project\(lram VERSION (\S+)"),
        (native / "include" / "lram.h", r'#define LRAM_VERSION "(\S+)"'),
    ):
        found = re.search(pattern, path.read_text(encoding="utf-8"))
        assert found and found[1] == version, path
    header = (native / "include" / "lram.h").read_text(encoding="utf-8")
    assert ".".join(re.findall(r"#define LRAM_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header)) == version
    assert _native.__version__ == version
    for example in ("c", "cpp"):
        text = (ROOT / "examples" / example / "CMakeLists.txt").read_text(encoding="utf-8")
        assert f"find_package(lram {version.rpartition('.')[0]} REQUIRED)" in text
