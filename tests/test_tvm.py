"""The target `tvm`: kernels against numpy, libraries for every platform this machine can run, and what is refused."""

from __future__ import annotations

import json
import math
import platform as host
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm.script import tirx as T

from lram_export import Bundle, load_policy
from lram_export.errors import BundleError, LramError
from lram_export.kernel_layout import TILE, input_major, int4_octets, int8_offsets, int8_quads, tiles
from lram_export.kernels.tvm import dense, functions, gpu, norms
from lram_export.precision import GROUP
from lram_export.reference import random_steps
from lram_export.runtimes import LoadedArtifact, load_runtime
from lram_export.specification import TensorSpec
from lram_export.tvm import build, platforms, virtual_machine
from lram_export.tvm.gpu_runtime import GpuRuntime
from lram_export.tvm.interface import (
    ALIGNMENT,
    WEIGHTS_FILE,
    WeightEntry,
    from_stored,
    map_weights,
    read_interface,
    stored_shape,
    to_stored,
    write_weights,
)
from lram_export.tvm.platforms import PLATFORMS, TvmPlatform, host_platform, unmet
from lram_export.tvm.relax_step import build_step

from .conftest import ExportFunction, fail, load_golden, succeed

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

    @pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
    @pytest.mark.parametrize("name", HERE)
    def test_libraries_of_every_platform_do_what_the_oracle_does(
        self, name: str, precision: str, tmp_path: Path, as_if: Callable[[str], None]
    ) -> None:
        golden, output = load_golden("state_ms"), tmp_path / "policy.lram"
        as_if(name)
        options = ("--target", "tvm", "--platform", name, "--precision", precision, "--reference-steps", "24")
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
        succeed("export", golden.checkpoint, "-o", output, *golden.task_options, "--target", "tvm", *chosen)
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

    def test_all_libraries_of_a_bundle_are_verified_not_only_the_one_that_would_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        golden, output = load_golden("state_m"), tmp_path / "policy.lram"
        wrong = PLATFORMS["x86_64-v3"]

        original_build = build_step

        def build_wrong_step(config: Any, task: Any, spec: Any, interface: Any, platform: Any, *rest: Any) -> Any:
            epsilons = replace(interface.epsilons, block=0.5 if platform is wrong else interface.epsilons.block)
            return original_build(config, task, spec, replace(interface, epsilons=epsilons), platform, *rest)

        monkeypatch.setattr("lram_export.exporters.tvm.build_step", build_wrong_step)
        chosen = [part for name in HERE for part in ("--platform", name)]
        options = (*golden.task_options, "--target", "tvm", *chosen, "--reference-steps", "4")
        _, line = fail("export", golden.checkpoint, "-o", output, *options)
        assert "disagree" in line
        assert "x86_64-v3" in line
        assert list(tmp_path.iterdir()) == []

    def test_two_platforms_of_one_name_are_one(self, tmp_path: Path) -> None:
        golden, output = load_golden("state_m"), tmp_path / "policy.lram"
        options = ("--target", "tvm", "--platform", "host", "--platform", HERE[0], "--reference-steps", "4")
        succeed("export", golden.checkpoint, "-o", output, *golden.task_options, *options)
        assert Bundle.open(output).artifact("tvm").platforms == (HERE[0],)


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="no cross-compiler for ARM")
class TestCrossCompiling:
    @pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
    def test_libraries_for_arm_are_compiled_here_and_their_kernels_verified(
        self, precision: str, tmp_path: Path
    ) -> None:
        golden, output = load_golden("state_ms"), tmp_path / "policy.lram"
        options = ("--target", "tvm", "--platform", "aarch64", "--precision", precision, "--reference-steps", "8")
        result = succeed("export", golden.checkpoint, "-o", output, *golden.task_options, *options)
        assert "verified on tvm-host (not where it will run)" in result.stderr
        machine = int.from_bytes((output / "tvm" / "step-aarch64.so").read_bytes()[18:20], "little")
        assert machine == 183  # EM_AARCH64
        assert Bundle.open(output).artifact("tvm").verified_by == "tvm-host"
        if host.machine() != "aarch64":
            _, line = fail("verify", output, "--target", "tvm")
            assert "no library for this processor (aarch64: this machine is" in line


GPUS = [name for name, platform in PLATFORMS.items() if platform.gpu is not None]
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA toolkit")


class TestGpu:
    """Kernels for a GPU, where none is: nvcc compiles them, and their blocks and threads run one after the other."""

    @pytest.mark.parametrize(("name", "batch"), [("state_ms", 1), ("state_ms", 3), ("image_m", 2)])
    def test_a_step_of_emulated_blocks_and_threads_is_the_processors(
        self, name: str, batch: int, exported: ExportFunction, tmp_path: Path
    ) -> None:
        bundle = Bundle.open(exported(name, batch=batch, targets=("tvm",)))
        artifact = bundle.load_artifact("tvm")
        library = self.emulated_library(artifact, tmp_path)
        weights = map_weights(read_interface(artifact.directory).weights, artifact.directory / WEIGHTS_FILE)
        on_gpu = GpuRuntime(library, weights, artifact.spec, gpu.COLUMNS, tvm.cpu())
        on_processor = load_runtime("tvm", artifact, 1)
        inputs = random_steps(artifact.spec, artifact.task, 6, seed=3)
        for step, values in enumerate(inputs):
            found, expected = on_gpu.step(*values), on_processor.step(*values)
            np.testing.assert_allclose(found.action_logits, expected.action_logits, atol=1e-4, rtol=0)
            if step == 2:
                on_gpu.reset([batch - 1])
                on_processor.reset([batch - 1])
            if step == 3:  # a run moves from one to the other, and on
                on_gpu.load_state(on_processor.state())
        for key, value in on_gpu.state().items():
            np.testing.assert_allclose(value, on_processor.state()[key], atol=1e-4, rtol=1e-4)

    def emulated_library(self, artifact: LoadedArtifact, folder: Path) -> Path:
        platform = replace(host_platform(), lanes=1, memory_columns=gpu.COLUMNS, dot=None)
        with gpu.emulate():
            module = build_step(
                artifact.config, artifact.task, artifact.spec, read_interface(artifact.directory), platform, gpu
            )
        build.build_library(module, platform, folder / "emulated.so")
        return folder / "emulated.so"

    @needs_nvcc
    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int4"])
    def test_every_precision_compiles_for_a_jetson_and_its_kernels_are_right(
        self, precision: str, tmp_path: Path
    ) -> None:
        golden, output = load_golden("state_ms"), tmp_path / "policy.lram"
        options = ("--target", "tvm", "--platform", "cuda-sm87", "--precision", precision, "--reference-steps", "8")
        if shutil.which("aarch64-linux-gnu-g++") is None:
            options = tuple("cuda-sm86" if o == "cuda-sm87" else o for o in options)
        result = succeed("export", golden.checkpoint, "-o", output, *golden.task_options, *options)
        assert "verified on tvm-host (not where it will run)" in result.stderr
        _, line = fail("verify", output, "--target", "tvm")
        assert "no library for this processor (cuda-sm8" in line

    @needs_nvcc
    def test_all_kernels_of_images_compile_for_every_gpu_of_this_kind_of_machine(self, tmp_path: Path) -> None:
        golden, output = load_golden("image_m"), tmp_path / "policy.lram"
        names = [n for n in GPUS if any(shutil.which(c) for c in PLATFORMS[n].compilers)]
        chosen = [part for name in names for part in ("--platform", name)]
        options = ("--target", "tvm", *chosen, "--reference-steps", "4")
        succeed("export", golden.checkpoint, "-o", output, *golden.task_options, *options)
        assert Bundle.open(output).artifact("tvm").platforms == tuple(names)

    def test_barriers_are_reached_by_all_threads_or_none(self, exported: ExportFunction) -> None:
        """A barrier under a condition that differs between threads would hang a GPU; emulation cannot show it."""
        artifact = Bundle.open(exported("state_ms", batch=3, targets=("tvm",))).load_artifact("tvm")
        interface = read_interface(artifact.directory)
        module = build_step(artifact.config, artifact.task, artifact.spec, interface, PLATFORMS["cuda-sm86"])
        source = cuda_source_of(module, "sm_86")
        around: list[str] = []  # lines that opened the braces which are open here
        barriers = 0
        for line in source.splitlines():
            if "__syncthreads" in line:
                barriers += 1
                assert not [opener for opener in around if "if (" in opener or "else" in opener], line
            for character in line:
                if character == "{":
                    around.append(line)
                elif character == "}":
                    around.pop()
        assert barriers > 20

    def test_all_loops_over_threads_have_as_many(self) -> None:
        """TVM would let all threads of a block run a shorter loop."""
        kernels = [
            gpu.layer_norm(3, 80, 1e-5, 1),
            gpu.mix(1, 256, 512, 4, 2, 4, 1),
            gpu.chunk(1, 4, 64, 2, 1),
            gpu.memory(1, 4, 64, 32, 1),
            gpu.recurrence(1, 4, 16, 1),
            gpu.choose(1, 4, 274, 1120, discrete=False, discrete_actions=18, channels=256),
        ]
        for kernel in kernels:
            extents = re.findall(r'thread_binding\((\d+), (?:thread=)?"threadIdx\.x"', kernel.script())
            assert set(extents) == {str(gpu.THREADS)}

    def test_a_missing_nvcc_is_named_with_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        golden, which = load_golden("state_m"), shutil.which
        monkeypatch.setattr(build.shutil, "which", lambda name: None if name == "nvcc" else which(name))
        options = ("--target", "tvm", "--platform", "cuda-sm86")
        _, line = fail("export", golden.checkpoint, "-o", tmp_path / "p.lram", *golden.task_options, *options)
        assert line == (
            "error: tvm: no nvcc, with which kernels for cuda-sm86 are compiled; install the CUDA toolkit, on Debian: "
            "apt-get install nvidia-cuda-toolkit"
        )
        assert list(tmp_path.iterdir()) == []

    @needs_nvcc
    def test_what_nvcc_does_not_compile_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(LramError, match=r"nvcc does not compile the kernels for sm_86: .*error: .*nowhere"):
            build.check_cuda("__global__ void f() { nowhere(); }", "sm_86", tmp_path)
        assert list(tmp_path.iterdir()) == []


def cuda_source_of(module: Any, architecture: str) -> str:
    """CUDA of a step's kernels, without linking anything."""
    target = tvm.target.Target({"kind": "cuda", "arch": architecture}, host=tvm.target.Target("llvm"))
    with target:
        built = tvm.relax.build(module, target=target, relax_pipeline=build._lower(), exec_mode="compiled")
    return build.cuda_source(built)


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
            ('{"version": 2}', "version 2, this lram-export reads 1"),
            ('{"version": 1, "weights": 3}', "not what target tvm writes"),
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
            with pytest.raises(BundleError, match=r"head\.bias: not where interface\.json says"):
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
print([name for name in ("tvm", "onnx", "xlstm", "lram_export.step") if name in sys.modules])
print("libtvm_compiler" in open("/proc/self/maps").read())
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split("\n")[:2] == ["[]", "False"]

    def test_doctor_shows_its_version(self) -> None:
        targets = json.loads(succeed("doctor", "--json").output)["targets"]
        assert "0.27" in json.dumps(targets["tvm"] if isinstance(targets, dict) else targets)


class TestInterface:
    @given(
        heads=st.integers(1, 3),
        width=st.sampled_from([16, 32, 48, 64, 80, 128, 192, 640]),
        columns=st.sampled_from([16, 32, 64]),
    )
    @settings(max_examples=30, deadline=None)
    def test_c_survives_the_way_into_tiles_and_back(self, heads: int, width: int, columns: int) -> None:
        spec = TensorSpec("state.0.C", (2, heads, width, width), "float32", 0.0)
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


def compiled(function: Any, platform: TvmPlatform | None = None) -> Any:
    """A kernel by itself, on this processor."""
    module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
    return tvm.compile(module, target=tvm.target.Target(dict((platform or host_platform()).target())))["kernel"]


def run(function: Any, *inputs: NDArray[Any], outputs: list[tuple[tuple[int, ...], str]], platform: Any = None) -> Any:
    """Compile a kernel and call it; returns its outputs."""
    results = [tvm.runtime.tensor(np.zeros(shape, dtype)) for shape, dtype in outputs]
    compiled(function, platform)(*(tvm.runtime.tensor(np.ascontiguousarray(x)) for x in inputs), *results)
    found = [result.numpy() for result in results]
    return found[0] if len(found) == 1 else found


class TestFunctions:
    @pytest.mark.parametrize("lanes", [1, 4, 16])
    @pytest.mark.parametrize(
        ("function", "expected"),
        [
            (functions.exponential, torch.exp),
            (functions.sigmoid, torch.sigmoid),
            (functions.silu, torch.nn.functional.silu),
            (functions.hyperbolic_tangent, torch.tanh),
            (functions.log_sigmoid, torch.nn.functional.logsigmoid),
            (functions.error_function, torch.erf),
            (functions.ACTIVATIONS["gelu"], torch.nn.functional.gelu),
            (functions.ACTIVATIONS["selu"], torch.nn.functional.selu),
            (functions.ACTIVATIONS["relu^2"], lambda x: torch.relu(x) ** 2),
        ],
        ids=["exp", "sigmoid", "silu", "tanh", "log_sigmoid", "erf", "gelu", "selu", "relu2"],
    )
    def test_a_function_is_right_to_a_few_units_in_the_last_place(
        self, function: Callable[[Any], Any], expected: Callable[[torch.Tensor], torch.Tensor], lanes: int
    ) -> None:
        x = np.concatenate([np.linspace(-20, 20, 4080), [-87, -1e-6, 0, 1e-6] * 4]).astype(np.float32)
        size = len(x)

        @T.prim_func(s_tir=True)
        def kernel(x: T.Buffer((size,), "float32"), y: T.Buffer((size,), "float32")):
            T.func_attr({"tirx.noalias": True})
            for i in T.serial(size // lanes):
                at = T.meta_var(T.ramp(i * lanes, 1, lanes) if lanes > 1 else i)
                y[at] = function(x[at])

        right = expected(torch.from_numpy(x).double()).numpy()
        error = np.abs(run(kernel, x, outputs=[((size,), "float32")]) - right)
        assert (error <= 5e-7 + 5e-7 * np.abs(right)).all(), float(error.max())

    @pytest.mark.parametrize("lanes", [2, 4, 8, 16])
    def test_sums_and_maxima_run_over_all_lanes(self, lanes: int) -> None:
        @T.prim_func(s_tir=True)
        def kernel(x: T.Buffer((lanes,), "float32"), y: T.Buffer((2,), "float32")):
            T.func_attr({"tirx.noalias": True})
            y[0] = functions.lane_sum(x[T.ramp(0, 1, lanes)])
            y[1] = functions.lane_max(x[T.ramp(0, 1, lanes)])

        x = np.arange(lanes, dtype=np.float32)[::-1] - 3
        found = run(kernel, x, outputs=[((2,), "float32")])
        assert found.tolist() == [x.sum(), x.max()]


SIZES = {
    "rows": st.integers(1, 7),
    "outputs": st.integers(1, 100),
    "inputs": st.integers(1, 12).map(lambda n: 16 * n),
}


class TestDense:
    """Products with weights of every kind, on every platform that runs here, against numpy."""

    @given(**SIZES, stored=st.sampled_from(["float32", "float16", "uint16"]), name=st.sampled_from(HERE))
    @settings(max_examples=25, deadline=None)
    def test_floating_point_weights(self, rows: int, outputs: int, inputs: int, stored: str, name: str) -> None:
        rng = np.random.default_rng(rows + outputs)
        weight = rng.standard_normal((outputs, inputs)).astype(np.float32)
        codes = (weight.view(np.uint32) >> 16).astype(np.uint16) if stored == "uint16" else weight.astype(stored)
        exact = (codes.astype(np.uint32) << 16).view(np.float32) if stored == "uint16" else codes.astype(np.float32)
        x = rng.standard_normal((rows, inputs)).astype(np.float32)
        count = math.ceil(outputs / TILE)
        kernel = dense.dense_float(rows, inputs, count, 1, stored, PLATFORMS[name].lanes)
        y = run(kernel, x, input_major(codes), outputs=[((rows, count * TILE), "float32")], platform=PLATFORMS[name])
        np.testing.assert_allclose(y[:, :outputs], x.astype(np.float64) @ exact.T, rtol=0, atol=2e-4)
        assert not y[:, outputs:].any()

    @given(**SIZES, format=st.sampled_from(["int8", "int4"]), name=st.sampled_from(HERE))
    @settings(max_examples=40, deadline=None)
    def test_integer_codes(self, rows: int, outputs: int, inputs: int, format: str, name: str) -> None:
        platform, rng = PLATFORMS[name], np.random.default_rng(rows + outputs)
        largest = 127 if format == "int8" else 7
        codes = rng.integers(-largest, largest + 1, (outputs, inputs)).astype(np.int8)
        codes[0] = largest  # the largest sum there is
        groups = 1 if format == "int8" else math.ceil(inputs / GROUP)
        scales = rng.uniform(0.5, 1.5, (outputs, groups)).astype(np.float32)
        exact = codes * np.repeat(scales, inputs if groups == 1 else GROUP, axis=1)[:, :inputs].astype(np.float64)
        x = rng.standard_normal((rows, inputs)).astype(np.float32)
        x[0] = np.abs(x[0]).max()
        y = self.product(platform, format, x, codes, scales)
        # two planes of codes: an input is off by half a unit of 1 / 16256 of its token's largest
        bound = np.abs(exact).sum(axis=1) * np.abs(x).max(axis=1, keepdims=True) / dense.LARGEST + 1e-3
        assert (np.abs(y[:, :outputs] - x.astype(np.float64) @ exact.T) <= bound).all()

    def product(self, platform: TvmPlatform, format: str, x: Floats, codes: NDArray[np.int8], scales: Floats) -> Floats:
        rows, inputs = x.shape
        count = math.ceil(len(codes) / TILE)
        output = [((rows, count * TILE), "float32")]
        if format == "int8":
            quads = int8_quads(codes)
            weight, per_tile = quads.reshape(*quads.shape[:2], -1), tiles(scales)[..., 0]
        else:
            octets = int4_octets(codes)
            weight, per_tile = octets.reshape(*octets.shape[:3], -1).view(np.int8), tiles(scales).transpose(0, 2, 1)
        dot = platform.dot
        if dot is None:
            make = dense.dense_int8_dequantized if format == "int8" else dense.dense_int4_dequantized
            kernel = make(rows, inputs, count, platform.lanes)
            return run(kernel, x, weight, per_tile, outputs=output, platform=platform)  # type: ignore[no-any-return]
        padded = inputs if format == "int8" else math.ceil(inputs / GROUP) * GROUP
        encode = dense.encode(rows, inputs, padded, dot.unsigned and format == "int8", format == "int4", platform.lanes)
        shapes = [((rows, 2, padded), "int8"), ((rows,), "float32")]
        if format == "int4":
            shapes.append(((rows, 2, padded // GROUP), "int32"))
        encoded = run(encode, x, outputs=shapes, platform=platform)
        options: dict[str, Any] = {"intrinsic": dot.intrinsic, "unsigned": dot.unsigned, "lanes": platform.lanes}
        if format == "int8":
            kernel = dense.dense_int8_dot(rows, inputs, count, outputs=dot.outputs, **options)
            arguments = [*encoded, weight, per_tile, int8_offsets(codes)]
        else:
            kernel = dense.dense_int4_dot(rows, padded, count, outputs=dot.int4_outputs, **options)
            arguments = [*encoded, weight, per_tile]
        return run(kernel, *arguments, outputs=output, platform=platform)  # type: ignore[no-any-return]

    def test_a_token_of_zeros_gives_zeros(self) -> None:
        codes, scales = np.full((32, 64), 127, np.int8), np.ones((32, 1), np.float32)
        y = self.product(host_platform(), "int8", np.zeros((3, 64), np.float32), codes, scales)
        assert not y.any()


class TestNorms:
    @given(rows=st.integers(1, 5), width=st.integers(1, 20).map(lambda n: 16 * n), name=st.sampled_from(HERE))
    @settings(max_examples=15, deadline=None)
    def test_layer_norm_is_torchs(self, rows: int, width: int, name: str) -> None:
        rng = np.random.default_rng(width)
        x = (3 * rng.standard_normal((rows, width)) + 5).astype(np.float32)
        weight = rng.standard_normal(width).astype(np.float32)
        kernel = norms.layer_norm(rows, width, 1e-5, PLATFORMS[name].lanes)
        y = run(kernel, x, weight, outputs=[((rows, width), "float32")], platform=PLATFORMS[name])
        expected = torch.nn.functional.layer_norm(torch.from_numpy(x), (width,), torch.from_numpy(weight), None, 1e-5)
        np.testing.assert_allclose(y, expected.numpy(), atol=2e-5, rtol=0)
