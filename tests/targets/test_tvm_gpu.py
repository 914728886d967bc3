"""Kernels of the target `tvm` for a GPU, where none is."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from lram_export import Bundle
from lram_export.episodes.steps import random_steps
from lram_export.errors import LramError
from lram_export.exporters.tvm import build
from lram_export.exporters.tvm.graph import build_step
from lram_export.kernels.tvm import gpu
from lram_export.kernels.tvm.gpu import dense
from lram_export.model.config import read_model
from lram_export.runtimes import LoadedArtifact, load_runtime
from lram_export.runtimes.tvm_gpu import GpuRuntime, on_device
from lram_export.targets.tvm.interface import WEIGHTS_FILE, map_weights, read_interface
from lram_export.targets.tvm.platforms import PLATFORMS, host_platform
from tests.conftest import SLOW, ExportFunction, fail, load_golden, succeed

GPUS = [name for name, platform in PLATFORMS.items() if platform.gpu is not None]
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA toolkit")


class TestGpu:
    """Kernels for a GPU, where none is: nvcc compiles them, and their blocks and threads run one after the other."""

    @pytest.mark.parametrize(
        ("name", "batch", "feedback"),
        [
            ("state_ms", 3, "none"),
            *(
                pytest.param(*case, marks=SLOW)
                for case in (
                    ("state_ms", 1, "none"),
                    ("image_m", 2, "none"),
                    ("mamba_state", 3, "none"),
                    ("mamba_image", 2, "none"),
                    ("dt_state", 3, "none"),
                    ("dt_state", 1, "observed"),
                    ("dt_image", 2, "observed"),
                )
            ),
        ],
    )
    def test_a_step_of_emulated_blocks_and_threads_is_the_processors(
        self, name: str, batch: int, feedback: str, exported: ExportFunction, tmp_path: Path
    ) -> None:
        bundle = Bundle.open(exported(name, feedback, batch=batch, targets=("tvm",)))
        artifact = bundle.load_artifact("tvm")
        library = self.emulated_library(artifact, tmp_path)
        weights = map_weights(read_interface(artifact.directory).weights, artifact.directory / WEIGHTS_FILE)
        on_gpu = GpuRuntime(library, on_device(weights, tvm.cpu()), artifact, gpu.COLUMNS, tvm.cpu())
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
                read_model(artifact.model, artifact.directory),
                artifact.task,
                artifact.spec,
                read_interface(artifact.directory),
                platform,
                gpu,
            )
        build.build_library(module, platform, folder / "emulated.so")
        return folder / "emulated.so"

    @needs_nvcc
    @pytest.mark.parametrize(
        ("name", "precision"),
        [
            ("mamba_state", "int8"),
            *(pytest.param("state_ms", p, marks=SLOW) for p in ("fp32", "fp16", "bf16", "int8", "int4")),
            *(pytest.param(name, p, marks=SLOW) for name in ("mamba_state", "dt_state") for p in ("fp32", "int4")),
        ],
    )
    def test_every_precision_compiles_for_a_jetson_and_its_kernels_are_right(
        self, name: str, precision: str, tmp_path: Path
    ) -> None:
        golden, output = load_golden(name), tmp_path / "policy.lram"
        options = ("--target", "tvm", "--platform", "cuda-sm87", "--precision", precision)
        options += ("--reference-steps", "8", "--no-report")
        if shutil.which("aarch64-linux-gnu-g++") is None:
            options = tuple("cuda-sm86" if o == "cuda-sm87" else o for o in options)
        platform = options[3]
        result = succeed("export", golden.checkpoint, "-o", output, *golden.task_options, *options)
        assert f"verified on tvm-host for {platform} (not where it will run)" in result.stderr
        _, line = fail("verify", output, "--target", "tvm")
        assert "no library for this processor (cuda-sm8" in line

    @SLOW
    @needs_nvcc
    def test_all_kernels_of_images_compile_for_every_gpu_of_this_kind_of_machine(self, tmp_path: Path) -> None:
        golden, output = load_golden("image_m"), tmp_path / "policy.lram"
        names = [n for n in GPUS if any(shutil.which(c) for c in PLATFORMS[n].compilers)]
        chosen = [part for name in names for part in ("--platform", name)]
        options = ("--target", "tvm", *chosen, "--reference-steps", "4", "--no-report")
        succeed("export", golden.checkpoint, "-o", output, *golden.task_options, *options)
        assert Bundle.open(output).artifact("tvm").platforms == tuple(names)

    @pytest.mark.parametrize(
        ("name", "feedback"),
        [
            pytest.param("state_ms", "none", marks=SLOW),
            pytest.param("mamba_state", "none", marks=SLOW),
            pytest.param("dt_state", "none", marks=SLOW),
            pytest.param("dt_state", "observed", marks=SLOW),
        ],
    )
    def test_barriers_are_reached_by_all_threads_or_none(
        self, name: str, feedback: str, exported: ExportFunction
    ) -> None:
        """A barrier under a condition that differs between threads would hang a GPU; emulation cannot show it."""
        artifact = Bundle.open(exported(name, feedback, batch=3, targets=("tvm",))).load_artifact("tvm")
        interface = read_interface(artifact.directory)
        module = build_step(
            read_model(artifact.model, artifact.directory),
            artifact.task,
            artifact.spec,
            interface,
            PLATFORMS["cuda-sm86"],
        )
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
            gpu.rms_norm(3, 80, 1e-5, 1),
            gpu.causal_convolution(1, 3, 1, 40, 96, 4, 1),
            gpu.mamba.selective_scan(1, 3, 1, 40, 9, 3, 96, 32, 64, 1),
            gpu.decision_transformer.cached_attention(1, 3, 2, 20, 9, 128, 1),
            gpu.decision_transformer.window_attention(1, 11, 2, 20, 128, False, 1),
            gpu.decision_transformer.slide(1, 3, 1, 11, 40, 1),
            gpu.decision_transformer.add_norm(3, 40, 64, 1e-5, 1),
            gpu.decision_transformer.activate(3, 40, 64, "gelu", 1),
            gpu.xlstm.mix(1, 3, 1, 256, 512, 4, 2, 4, 4, 1),
            gpu.xlstm.chunk(1, 3, 1, 4, 64, 2, 1, 1),
            gpu.xlstm.memory(1, 3, 4, 64, gpu.COLUMNS, 1),
            gpu.xlstm.recurrence(1, 3, 1, 4, 20, 1),
            gpu.choose(1, 4, 274, 1120, discrete=False, discrete_actions=18, channels=256),
            gpu.normalize_observation(3, 39),
            gpu.look_up(3, 4, 274),
        ]
        for kernel in kernels:
            assert threads_of(kernel) == {gpu.THREADS}

    @pytest.mark.parametrize("tokens", [1, 3, 8])
    def test_a_product_has_as_many_threads_as_its_sums_leave_registers_for(self, tokens: int) -> None:
        for kernel in (
            gpu.dense_float(tokens, 40, 2, 1, "float32", 1),
            gpu.dense_int8_dequantized(tokens, 40, 2, 1),
            gpu.dense_int8g_dequantized(tokens, 40, 2, 1),
            gpu.dense_int4_dequantized(tokens, 40, 2, 1),
        ):
            assert threads_of(kernel) == {32 * dense.warps(tokens)}

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


def threads_of(kernel: Any) -> set[int]:
    """How many threads its loops over threads have."""
    return {int(found) for found in re.findall(r'thread_binding\((\d+), (?:thread=)?"threadIdx\.x"', kernel.script())}


def test_kernels_of_an_interface_do_what_it_says() -> None:
    with gpu.emulate():
        normalize, look_up = gpu.normalize_observation(3, 39), gpu.look_up(3, 4, 10)
    rng = np.random.default_rng(0)

    def run(kernel: Any, *arrays: Any) -> Any:
        module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
        tensors = [tvm.runtime.tensor(array) for array in arrays]
        tvm.compile(module, target="llvm")["main"](*tensors)
        return tensors[-1].numpy()

    x, mean = rng.standard_normal((3, 39), np.float32), rng.standard_normal(39, np.float32)
    deviation, clip = rng.uniform(0.1, 2, 39).astype(np.float32), np.array([1.5], np.float32)
    found = run(normalize, x, mean, deviation, clip, np.zeros_like(x))
    assert np.array_equal(found, np.clip((x - mean) / deviation, -clip, clip))
    chosen, values = rng.integers(0, 10, (3, 4)), rng.standard_normal(40, np.float32)
    found = run(look_up, chosen, values, np.zeros((3, 4), np.float32))
    assert np.array_equal(found, values.reshape(4, 10)[np.arange(4)[None], chosen])
