"""The target `tvm`: libraries for every platform this machine can run, the runtime, and what is refused."""

from __future__ import annotations

import json
import platform as host
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lram_export import Bundle, Policy, load_policy
from lram_export.errors import BundleError
from lram_export.exporters.tvm import build
from lram_export.exporters.tvm.graph import build_step
from lram_export.spec.tensors import StateSpec
from lram_export.targets.tvm import platforms, virtual_machine
from lram_export.targets.tvm.interface import (
    ALIGNMENT,
    WeightEntry,
    from_stored,
    map_weights,
    read_interface,
    stored_shape,
    to_stored,
    write_weights,
)
from lram_export.targets.tvm.platforms import PLATFORMS, host_platform, unmet
from tests.conftest import SLOW, ExportFunction, fail, load_golden, succeed

HERE = [name for name, platform in PLATFORMS.items() if platform.gpu is None and unmet(platform) is None]
Floats = NDArray[np.float32]


@pytest.fixture
def as_if(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let this processor have no more than a platform asks for."""

    def limit(name: str) -> None:
        monkeypatch.setattr(platforms, "cpu_features", lambda: PLATFORMS[name].features)

    return limit


class TestPlatforms:
    def test_this_machine_runs_at_least_one(self) -> None:
        assert host_platform().name == HERE[0]

    @pytest.mark.parametrize(
        ("name", "model", "precision"),
        [
            # the machine's own runs in the contract
            pytest.param(
                name, model, precision, marks=() if (name, model, precision) == (HERE[-1], "state_ms", "int8") else SLOW
            )
            for name in HERE
            for model in ("state_ms", "mamba_state", "dt_state")
            for precision in ("fp32", "bf16", "int8", "int8g", "int4")
        ],
    )
    def test_libraries_of_every_platform_do_what_the_oracle_does(
        self, name: str, model: str, precision: str, tmp_path: Path, as_if: Callable[[str], None]
    ) -> None:
        golden, output = load_golden(model), tmp_path / "policy.lram"
        as_if(name)
        options = ("--target", "tvm", "--platform", name, "--precision", precision)
        options += ("--reference-steps", "24", "--no-report")
        succeed("export", golden.checkpoint, "-o", output, *golden.task_options, *options)
        artifact = Bundle.open(output).artifact("tvm")
        assert artifact.platform == name
        assert artifact.verified_by == "tvm"
        assert artifact.parity is not None
        assert artifact.parity.passed

    def test_a_bundle_holds_one_library_per_platform_and_the_weights_once(
        self, tmp_path: Path, as_if: Callable[[str], None]
    ) -> None:
        golden, output = load_golden("state_m"), tmp_path / "policy.lram"
        chosen = [part for name in HERE for part in ("--platform", name)]
        succeed(
            "export", golden.checkpoint, "-o", output, *golden.task_options, "--target", "tvm", *chosen, "--no-report"
        )
        files = {file.name: file.stat().st_size for file in (output / "tvm").iterdir()}
        assert set(files) == {"weights.bin", "interface.json", *(f"step-{name}.so" for name in HERE)}
        assert all(size < 2e6 for name, size in files.items() if name.endswith(".so"))  # code alone
        # the least demanding processor among them runs its library, and comes to the same
        observation = golden.trace["observations"][0]
        with load_policy(output, target="tvm") as policy:
            expected = policy.act(observation)
        as_if(HERE[-1])
        with load_policy(output, target="tvm") as policy:
            np.testing.assert_array_equal(policy.act(observation), expected)

    @pytest.mark.skipif(len(HERE) < 2, reason="this processor runs one library only")
    def test_all_libraries_of_a_bundle_are_verified_not_only_the_one_that_would_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        golden, output = load_golden("state_m"), tmp_path / "policy.lram"
        wrong = PLATFORMS[HERE[-1]]

        original_build = build_step

        def build_wrong_step(config: Any, task: Any, spec: Any, interface: Any, platform: Any, *rest: Any) -> Any:
            epsilons = {**interface.epsilons, **({"block": 0.5} if platform is wrong else {})}
            return original_build(config, task, spec, replace(interface, epsilons=epsilons), platform, *rest)

        monkeypatch.setattr("lram_export.exporters.tvm.exporter.build_step", build_wrong_step)
        chosen = [part for name in HERE for part in ("--platform", name)]
        options = (*golden.task_options, "--target", "tvm", *chosen, "--reference-steps", "4")
        _, line = fail("export", golden.checkpoint, "-o", output, *options)
        assert "disagree" in line
        assert wrong.name in line
        assert list(tmp_path.iterdir()) == []

    def test_two_platforms_of_one_name_are_one(self, tmp_path: Path) -> None:
        golden, output = load_golden("state_m"), tmp_path / "policy.lram"
        options = ("--target", "tvm", "--platform", "host", "--platform", HERE[0], "--reference-steps", "4")
        options += ("--no-report",)
        succeed("export", golden.checkpoint, "-o", output, *golden.task_options, *options)
        assert Bundle.open(output).artifact("tvm").platforms == (HERE[0],)


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="no cross-compiler for ARM")
class TestCrossCompiling:
    @pytest.mark.parametrize(
        ("name", "precision"),
        [
            ("state_ms", "int8"),
            *(pytest.param("state_ms", precision, marks=SLOW) for precision in ("fp32", "int8g", "int4")),
            *(
                pytest.param(name, precision, marks=SLOW)
                for name in ("mamba_state", "dt_state")
                for precision in ("fp32", "int8", "int4")
            ),
        ],
    )
    def test_libraries_for_arm_are_compiled_here_and_their_kernels_verified(
        self, name: str, precision: str, tmp_path: Path
    ) -> None:
        golden, output = load_golden(name), tmp_path / "policy.lram"
        options = ("--target", "tvm", "--platform", "aarch64", "--precision", precision)
        options += ("--reference-steps", "8", "--no-report")
        result = succeed("export", golden.checkpoint, "-o", output, *golden.task_options, *options)
        assert "verified on tvm-host for aarch64 (not where it will run)" in result.stderr
        machine = int.from_bytes((output / "tvm" / "step-aarch64.so").read_bytes()[18:20], "little")
        assert machine == 183  # EM_AARCH64
        assert Bundle.open(output).artifact("tvm").verified_by == "tvm-host"
        if host.machine() != "aarch64":
            _, line = fail("verify", output, "--target", "tvm")
            assert "no library for this processor (aarch64: this machine is" in line


class TestRefusals:
    def test_an_unknown_platform_gives_the_list(self, tmp_path: Path) -> None:
        golden = load_golden("state_m")
        line = fail(
            "export", golden.checkpoint, "-o", tmp_path / "p.lram", *golden.task_options,
            "--target", "tvm", "--platform", "riscv64",
        )[1]  # fmt: skip
        assert line == (f"error: --platform: unknown platform 'riscv64'; known: host, {', '.join(PLATFORMS)}")
        assert not (tmp_path / "p.lram").exists()

    def test_a_platform_without_the_target_is_refused(self, tmp_path: Path) -> None:
        golden = load_golden("state_m")
        line = fail(
            "export", golden.checkpoint, "-o", tmp_path / "p.lram", *golden.task_options,
            "--target", "onnxruntime", "--platform", "aarch64",
        )[1]  # fmt: skip
        assert line == "error: --platform: only with --target tvm"

    def test_a_library_for_another_processor_is_not_even_loaded(
        self, exported: ExportFunction, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle = exported("state_m", targets=("tvm",))
        monkeypatch.setattr(host, "machine", lambda: "riscv64")
        monkeypatch.setattr(virtual_machine.tvm_ffi, "load_module", lambda *_: pytest.fail("it was loaded"))
        _, line = fail("verify", bundle, "--target", "tvm")
        assert f"no library for this processor ({HERE[0]}: this machine is riscv64)" in line
        assert "--platform host" in line

    def test_a_processor_without_an_instruction_set_is_told_which(
        self, exported: ExportFunction, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle = exported("state_m", targets=("tvm",))
        monkeypatch.setattr(platforms, "cpu_features", lambda: PLATFORMS[HERE[0]].features[1:])
        _, line = fail("verify", bundle, "--target", "tvm")
        assert f"this processor has no {PLATFORMS[HERE[0]].features[0]}" in line

    def test_a_missing_compiler_is_named_with_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        golden = load_golden("state_m")
        monkeypatch.setattr(build.shutil, "which", lambda _: None)
        line = fail(
            "export", golden.checkpoint, "-o", tmp_path / "p.lram", *golden.task_options,
            "--target", "tvm", "--platform", "aarch64",
        )[1]  # fmt: skip
        assert line == (
            "error: tvm: no compiler that links for aarch64 (looked for aarch64-linux-gnu-g++); install one, "
            "on Debian: apt-get install g++-aarch64-linux-gnu"
        )
        assert list(tmp_path.iterdir()) == []

    def test_a_tvm_whose_llvm_lacks_a_processor_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        golden = load_golden("state_m")
        monkeypatch.setattr("tvm.target.codegen.llvm_get_targets", lambda: ["x86", "x86_64"])
        line = fail(
            "export", golden.checkpoint, "-o", tmp_path / "p.lram", *golden.task_options,
            "--target", "tvm", "--platform", "aarch64",
        )[1]  # fmt: skip
        assert line.startswith("error: tvm: its LLVM generates no aarch64 code, only x86, x86_64; install")
        assert list(tmp_path.iterdir()) == []

    def test_a_linker_that_fails_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        golden, compiler = load_golden("state_m"), tmp_path / "g++"
        compiler.write_text("#!/bin/sh\necho 'ld: no space left' >&2\nexit 1\n")
        compiler.chmod(0o755)
        monkeypatch.setattr(build, "find_compiler", lambda _: str(compiler))
        options = (*golden.task_options, "--target", "tvm", "--reference-steps", "4")
        _, line = fail("export", golden.checkpoint, "-o", tmp_path / "p.lram", *options)
        assert f"cannot link step-{HERE[0]}.so" in line
        assert list(tmp_path.iterdir()) == [compiler]

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("{", "not what target tvm writes"),
            ('{"version": 3}', "version: expected 1 to 2, got 3"),
            ('{"version": 1, "weights": 3}', "not what target tvm writes"),
            (
                '{"version": 1, "weights": [{"name": "head.bias", "shape": [4], "dtype": "float32", "offset": 32}]}',
                r"weights\[0\]\.offset: expected 0, got 32",
            ),
        ],
    )
    def test_a_damaged_interface_is_named(self, content: str, expected: str, tmp_path: Path) -> None:
        (tmp_path / "interface.json").write_text(content)
        with pytest.raises(BundleError, match=expected):
            read_interface(tmp_path)

    def test_weights_that_are_not_where_they_should_be_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.bin"
        path.write_bytes(bytes(256))
        for offset, shape in ((128, (64,)), (32, (4,)), (-64, (4,))):
            with pytest.raises(BundleError, match=r"256 bytes are not the weights of interface\.json"):
                map_weights((WeightEntry("head.bias", shape, "float32", offset),), path)

    def test_something_that_is_no_library_is_refused(self, exported: ExportFunction, tmp_path: Path) -> None:
        bundle = tmp_path / "damaged.lram"
        shutil.copytree(exported("state_m", targets=("tvm",)), bundle)
        library = bundle / "tvm" / f"step-{HERE[0]}.so"
        library.write_bytes(b"\x7fELF" + bytes(100))
        manifest = json.loads((bundle / "manifest.json").read_text())
        (entry,) = (f for f in manifest["artifacts"][0]["files"] if f["path"].endswith(".so"))
        entry["size"] = library.stat().st_size
        entry["sha256"] = __import__("hashlib").sha256(library.read_bytes()).hexdigest()
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        _, line = fail("verify", bundle, "--target", "tvm")
        assert "TVM cannot run it" in line


class TestRuntime:
    def test_the_number_of_threads_does_not_change_a_bit(self, exported: ExportFunction) -> None:
        bundle, golden = exported("state_ms", targets=("tvm",)), load_golden("state_ms")
        logits = []
        for threads in (1, 2, 3):
            with load_policy(bundle, target="tvm", threads=threads) as policy:
                for observation in golden.trace["observations"][:4]:
                    policy.act(observation)
                logits.append(policy.action_logits.copy())
        np.testing.assert_array_equal(logits[0], logits[1])
        np.testing.assert_array_equal(logits[0], logits[2])

    def test_it_loads_neither_the_compiler_nor_what_an_export_needs(self, exported: ExportFunction) -> None:
        bundle = exported("state_m", targets=("tvm",))
        code = f"""
import sys
sys.modules["torch"] = None  # tvm_ffi takes it along where it is installed
from lram_export import load_policy
import numpy as np
policy = load_policy({str(bundle)!r}, target="tvm")
policy.act(np.zeros(39, np.float32))
print([name for name in ("tvm", "onnx", "xlstm", "lram_export.model.step_graph") if name in sys.modules])
print("libtvm_compiler" in open("/proc/self/maps").read())
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split("\n")[:2] == ["[]", "False"]

    def test_doctor_shows_its_version(self) -> None:
        targets = json.loads(succeed("doctor", "--json").output)["targets"]
        assert targets["tvm"]["versions"]["tvm"] == version("apache-tvm")

    def test_c_lies_as_the_library_was_compiled_whatever_this_version_would_choose(
        self, exported: ExportFunction, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle, inputs = exported("state_m", targets=("tvm",)), load_golden("state_m").trace["observations"][:6]

        def logits() -> Floats:
            with load_policy(bundle, target="tvm", threads=1) as policy:
                for observation in inputs:
                    policy.act(observation)
                policy.load_state(policy.state())
                policy.act(inputs[0])
                return policy.action_logits.copy()

        expected = logits()
        table = {name: replace(platform, memory_columns=16) for name, platform in PLATFORMS.items()}
        monkeypatch.setattr("lram_export.runtimes.tvm.PLATFORMS", table)
        np.testing.assert_array_equal(logits(), expected)


class TestInterface:
    @given(
        heads=st.integers(1, 3),
        width=st.sampled_from([16, 32, 48, 64, 80, 128, 192, 640]),
        columns=st.sampled_from([16, 32, 64]),
    )
    @settings(max_examples=30, deadline=None)
    def test_c_survives_the_way_into_tiles_and_back(self, heads: int, width: int, columns: int) -> None:
        spec = StateSpec("state.0.C", (2, heads, width, width), "float32", role="matrix")
        value = np.random.default_rng(0).standard_normal(spec.shape).astype(np.float32)
        stored = to_stored(spec, value, columns)
        assert stored.shape == stored_shape(spec, columns)
        np.testing.assert_array_equal(from_stored(spec, stored, columns), value)
        tile = stored.shape[-1]
        np.testing.assert_array_equal(stored[1, heads - 1, -1, 3], value[1, heads - 1, 3, -tile:])

    def test_weights_come_back_as_they_were_and_aligned(self, tmp_path: Path) -> None:
        arrays: dict[str, NDArray[Any]] = {
            "a": np.arange(5, dtype=np.float32),
            "b": np.arange(6, dtype=np.int8).reshape(2, 3),
            "c": np.ones((1, 2), np.float16),
        }
        entries = write_weights(arrays, tmp_path / "weights.bin")
        for mapped, array in zip(map_weights(entries, tmp_path / "weights.bin"), arrays.values(), strict=True):
            np.testing.assert_array_equal(mapped, array)
            assert mapped.ctypes.data % ALIGNMENT == 0


def test_a_library_is_the_one_at_its_path_whatever_was_loaded_from_there(tmp_path: Path) -> None:
    path, golden = tmp_path / "p.lram", load_golden("state_m")
    observation = np.random.default_rng(0).standard_normal(39).astype(np.float32)

    def made(precision: str) -> Policy:
        options = ("--target", "tvm", "--precision", precision, "--force", "--no-report")
        succeed("export", golden.checkpoint, "-o", path, *golden.task_options, *options)
        return load_policy(path, "tvm")

    with made("fp32") as before, made("int8") as after:  # of which one has more arguments
        assert after.origin is not None and after.origin.precision == "int8"
        assert np.abs(before.act(observation) - after.act(observation)).max() < 0.5
        assert not np.array_equal(before.action_logits, after.action_logits)
