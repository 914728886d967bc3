"""The target `tensorrt`: real builds by TensorRT for RTX, which needs no GPU; running on a simulated one."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from lram_export import load_policy
from lram_export.bundle.bundle import Bundle
from lram_export.errors import BundleError, LramError, UsageError
from lram_export.exporters.onnx.typed import typed_product
from lram_export.runtimes.stacked import StackedRuntime
from lram_export.spec.codes import QuantizedMatrix
from lram_export.targets.tensorrt import cuda, toolkit
from lram_export.targets.tensorrt.builder import check_capabilities
from lram_export.targets.tensorrt.engines import EngineStore
from lram_export.targets.tensorrt.recipe import read_recipe
from lram_export.targets.tensorrt.toolkit import find_toolkit, refusal
from tests import simulated_gpu
from tests.conftest import GOLDEN_NAMES, SLOW, ExportFunction, fail, load_golden, succeed
from tests.simulated_gpu import SimulatedCuda, SimulatedTensorrt


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> SimulatedTensorrt:
    """A GPU of compute capability 8.7 and TensorRT 10.3.0, both simulated."""
    return simulated_gpu.install(monkeypatch)


@pytest.fixture
def kit(exported: ExportFunction, tmp_path: Path) -> Path:
    """A bundle for a board, with nothing compiled next to it."""
    bundle = tmp_path / "arm.lram"
    shutil.copytree(exported("state_ms", targets=("tensorrt",)), bundle)
    return bundle


class TestBuilding:
    """With the real TensorRT for RTX."""

    @pytest.mark.parametrize(
        ("golden_name", "precision"),
        [
            ("state_ms", "fp16"),
            *(pytest.param(name, "fp32", marks=SLOW) for name in GOLDEN_NAMES),
            *(pytest.param(name, "fp16", marks=SLOW) for name in ("state_m", "image_m")),
        ],
    )
    def test_golden_graphs_build_for_three_generations_without_a_gpu(
        self, golden_name: str, precision: str, tmp_path: Path
    ) -> None:
        golden, output = load_golden(golden_name), tmp_path / "policy.lram"
        options = (*golden.task_options, "--target", "tensorrt", "--precision", precision)
        options += ("--reference-steps", "8", "--no-report")
        result = succeed("export", golden.checkpoint, "-o", output, *options)
        assert "verified on onnxruntime (not where it will run)" in result.stderr
        check_engine(output, precision)

    @pytest.mark.precisions
    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_the_16m_preset_builds(self, precision: str, tmp_path: Path) -> None:
        succeed("new", "--preset", "16m", "-o", tmp_path / "16m")
        options = ("--observation-dim", "39", "--action-dim", "4", "--target-return", "1", "--reward-scale", "1")
        options += ("--precision", precision, "--target", "tensorrt", "--reference-steps", "4")
        succeed("export", tmp_path / "16m", "-o", tmp_path / "policy.lram", *options)
        check_engine(tmp_path / "policy.lram", precision)

    @pytest.mark.parametrize(
        "precision", [pytest.param("int8", marks=SLOW), pytest.param("int4", marks=pytest.mark.precisions)]
    )
    def test_codes_stay_quantized_in_the_engine(self, precision: str, tmp_path: Path) -> None:
        """Widened to float32 the engine would have 4 times the bytes of its int8 codes, 8 times those of int4."""
        succeed("new", "--preset", "16m", "-o", tmp_path / "16m")
        options = ("--observation-dim", "39", "--action-dim", "4", "--target-return", "1", "--reward-scale", "1")
        options += ("--target", "tensorrt", "--reference-steps", "4", "--compute-capability", "8.6")
        output = tmp_path / f"{precision}.lram"
        succeed("export", tmp_path / "16m", "-o", output, *options, "--precision", precision)
        entry = Bundle.open(output).artifact("tensorrt")
        assert entry.platform == "compute capability 8.6"
        size = next(f.size for f in entry.files if f.path.endswith(".plan"))
        assert 1 < size / entry.weight_bytes < 2  # kernels and graph are a few megabytes more than the weights

    def test_refused_operators_are_named(self, tmp_path: Path) -> None:
        from lram_export.targets.tensorrt.builder import build_engine
        from lram_export.targets.tensorrt.recipe import BuildRecipe

        x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2]) for n in "xy")
        node = onnx.helper.make_node("Unheard", ["x"], ["y"], name="blocks.0.odd", domain="nowhere")
        opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("nowhere", 1)]
        graph = onnx.helper.make_graph([node], "g", [x], [y])
        onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "odd.onnx")
        with pytest.raises(LramError, match=r"refuses .*Unheard.*blocks\.0\.odd") as error:
            build_engine(find_toolkit(), tmp_path / "odd.onnx", BuildRecipe("fp32"), rows=2)
        assert "\n" not in str(error.value)

    def test_ctrl_c_ends_a_build(self, exported: ExportFunction) -> None:
        from lram_export.targets.tensorrt.builder import build_engine
        from lram_export.targets.tensorrt.recipe import BuildRecipe

        class Interrupted:
            @contextmanager
            def stage(self, description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
                def advance(amount: int) -> None:
                    signal.raise_signal(signal.SIGINT)

                yield advance

        onnx_path = exported("state_ms", targets=("tensorrt",)) / "tensorrt" / "model.onnx"
        with pytest.raises(KeyboardInterrupt):
            build_engine(
                find_toolkit(),
                onnx_path,
                BuildRecipe("fp32"),
                rows=1,
                compute_capabilities=["8.6"],
                progress=Interrupted(),
            )

    @pytest.mark.parametrize(
        ("capability", "message"),
        [
            ("7.5", "7.5 takes products in float16 only"),
            ("8.7", "does not build for 8.7; it does: 8.0, 8.6, 8.9, 12.0, 12.1"),
            ("86", "expected a number such as 8.6, got '86'"),
            ("8.x", "expected a number such as 8.6, got '8.x'"),
        ],
    )
    def test_a_compute_capability_that_cannot_be_is_refused(self, capability: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            check_capabilities(find_toolkit(), [capability])


def check_engine(bundle: Path, precision: str) -> None:
    entry = Bundle.open(bundle).artifact("tensorrt")
    assert entry.verified_by == "onnxruntime" and entry.parity is not None and entry.parity.passed
    assert entry.activations == ("fp16" if precision == "fp16" else "float32")
    (engine,) = read_recipe(bundle / "tensorrt").engines
    assert engine.compute_capabilities == ("8.6", "8.9", "12.0") and engine.toolkit == "tensorrt_rtx"
    plan = (bundle / "tensorrt" / engine.file).read_bytes()
    # without a GPU this says no to every engine, but with another code if it is one at all
    trt = find_toolkit().module
    runtime = trt.Runtime(find_toolkit().logger)
    _, diagnostics = runtime.get_engine_validity(plan)
    _, for_junk = runtime.get_engine_validity(b"junk" * 1000)
    assert diagnostics != for_junk


class TestPrecisions:
    @pytest.mark.parametrize("precision", ["int8", *(pytest.param(p, marks=SLOW) for p in ("fp16", "bf16", "int4"))])
    def test_the_graph_computes_what_the_oracle_does(
        self, precision: str, exported: ExportFunction, tmp_path: Path
    ) -> None:
        options = (*load_golden("state_ms").task_options, "--precision", precision)
        bundle = Bundle.open(exported("state_ms", targets=("tensorrt",), options=options))
        parity = bundle.artifact("tensorrt").parity
        assert parity is not None and parity.relative_error is not None and parity.steps == 64
        # weights alone: the codes times the scales to the bit; 16-bit products: rounded, and not by accident float32
        low, high = (1e-4, 3e-2) if precision.endswith("16") else (0, 1e-4)
        assert low <= parity.relative_error <= high

    def test_gates_norms_and_state_stay_float32(self, exported: ExportFunction) -> None:
        options = (*load_golden("state_ms").task_options, "--precision", "fp16")
        model = onnx.load(exported("state_ms", targets=("tensorrt",), options=options) / "tensorrt" / "model.onnx")
        halves = {i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT16}
        halves |= {
            output
            for node in model.graph.node
            if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT16
            for output in node.output
        }
        readers = {node.op_type for node in model.graph.node if halves & set(node.input)}
        assert readers == {"MatMul"}

    def test_a_column_of_zeros_gets_a_scale_tensorrt_takes(self) -> None:
        import onnx_ir as ir
        from onnx_ir.tape import Tape

        codes = np.array([[1, 2], [0, 0]], np.int8)
        matrix = QuantizedMatrix("head", "int8", codes, np.array([[0.5], [0]], np.float32))
        tape = Tape()
        typed_product(tape, ir.Value(name="x", shape=ir.Shape([1, 2]), type=ir.TensorType(ir.DataType.FLOAT)), matrix)
        scales = next(v for v in tape.initializers if v.name == "head.scales").const_value
        assert scales is not None and scales.numpy().tolist() == [0.5, 1.0]


class TestWithoutGpu:
    """This machine has none, or the tests would not know it: the real CUDA bindings are asked."""

    @pytest.fixture(autouse=True)
    def no_gpu(self) -> None:
        if cuda.unavailable() is None:
            pytest.skip("this machine has a GPU")

    def test_loading_says_in_one_line_what_is_missing(self, kit: Path) -> None:
        with pytest.raises(UsageError, match=r"target 'tensorrt': no NVIDIA .*--target onnxruntime"):
            load_policy(kit, target="tensorrt")

    def test_compiling_and_verifying_say_it_too(self, kit: Path) -> None:
        assert "compile on the machine that will run" in fail("compile", kit)[1]
        assert "no NVIDIA" in fail("verify", kit)[1]

    def test_doctor_shows_it(self) -> None:
        tensorrt = json.loads(succeed("doctor", "--json").stdout)["targets"]["tensorrt"]
        assert tensorrt["exports"] and not tensorrt["runs"] and "no NVIDIA" in tensorrt["why_not"]

    def test_a_bundle_with_other_targets_runs_one_of_them(self, exported: ExportFunction) -> None:
        bundle = exported("state_ms", targets=("tensorrt", "onnxruntime"))
        with load_policy(bundle) as policy:
            assert type(policy.runtime).__name__ == "OnnxRuntime"


class TestOnTheDevice:
    """On a simulated GPU."""

    def test_compile_builds_verifies_keeps_and_then_just_loads(self, kit: Path, simulated: SimulatedTensorrt) -> None:
        document = json.loads(succeed("compile", kit, "--json").stdout)
        assert document["parity"]["passed"] and document["seconds"] is not None
        digest = Bundle.open(kit).artifact("tensorrt").digest
        engine = kit.parent / "arm.engines" / f"tensorrt-10.3.0-sm87-fp32-{digest[:8]}.plan"
        assert Path(document["engine"]) == engine and engine.is_file()
        assert json.loads(engine.with_suffix(".json").read_text())["compute_capability"] == "8.7"
        with load_policy(kit, target="tensorrt") as policy:
            policy.act(np.zeros(204, np.float32))
        again = json.loads(succeed("compile", kit, "--json").stdout)
        assert again["seconds"] is None and len(simulated.builds) == 1
        succeed("compile", kit, "--force")
        assert len(simulated.builds) == 2

    def test_an_engine_for_other_rows_is_kept_beside_and_taken(self, kit: Path, simulated: SimulatedTensorrt) -> None:
        succeed("compile", kit)
        shared, observation = len(simulated.gpu.blocks), np.zeros((5, 204), np.float32)
        with load_policy(kit, target="tensorrt", batch=5) as parts:
            assert isinstance(parts.runtime, StackedRuntime)
            expected = parts.act(observation)
        assert len(simulated.gpu.blocks) == shared, "closing gives all memory back"
        document = json.loads(succeed("compile", kit, "--batch", "5", "--json").stdout)
        assert document["parity"]["passed"] and document["engine"].endswith("-5rows.plan")
        assert [build.rows for build in simulated.builds] == [1, 5]
        with load_policy(kit, target="tensorrt", batch=5) as policy:
            assert not isinstance(policy.runtime, StackedRuntime)
            np.testing.assert_allclose(policy.act(observation), expected, atol=1e-5)
        with load_policy(kit, target="tensorrt") as one:
            one.act(observation[0])
        assert json.loads(succeed("compile", kit, "--batch", "5", "--json").stdout)["seconds"] is None

    def test_an_engine_for_fewer_rows_is_verified_over_all_recorded(
        self, exported: ExportFunction, tmp_path: Path, simulated: SimulatedTensorrt
    ) -> None:
        bundle = Path(shutil.copytree(exported("state_ms", "observed", batch=3, targets=("tensorrt",)), tmp_path / "b"))
        assert json.loads(succeed("compile", bundle, "--batch", "2", "--json").stdout)["parity"]["passed"]
        assert simulated.builds[-1].rows == 2

    def test_a_graph_for_fixed_rows_is_not_compiled_for_others(
        self, kit: Path, simulated: SimulatedTensorrt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network_input = simulated_gpu._NetworkInput

        def fixed(value: Any) -> Any:
            found = network_input(value)
            return SimpleNamespace(name=found.name, shape=(1, *found.shape[1:]))

        monkeypatch.setattr(simulated_gpu, "_NetworkInput", fixed)
        code, line = fail("compile", kit, "--batch", "4")
        assert code == 2 and "the graph is for 1 rows only, got 4; an engine for 1 serves any number" in line
        assert not list((kit.parent / "arm.engines").glob("*.plan"))

    def test_the_build_follows_the_recipe(self, kit: Path, simulated: SimulatedTensorrt) -> None:
        succeed("compile", kit)
        (build,) = simulated.builds
        assert build.flags == 1 << simulated.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        assert build.config.limits == {"WORKSPACE": 64_000_000_000 // 8}
        assert build.config.set_flags == set() and build.config.builder_optimization_level == 3
        assert (kit.parent / "arm.engines" / "tensorrt-10.3.0-sm87.timing.cache").read_bytes() == b"timed"
        succeed("compile", kit, "--force")
        assert (kit.parent / "arm.engines" / "tensorrt-10.3.0-sm87.timing.cache").read_bytes() == b"timedtimed"

    def test_a_step_is_one_graph_launch_and_no_allocation(self, kit: Path, simulated: SimulatedTensorrt) -> None:
        succeed("compile", kit)
        with load_policy(kit, target="tensorrt") as policy:
            before, blocks = simulated.gpu.launches, set(simulated.gpu.blocks)
            for _ in range(5):
                policy.act(np.zeros(204, np.float32))
            assert simulated.gpu.launches == before + 5 and set(simulated.gpu.blocks) == blocks
        assert not simulated.gpu.blocks, "closing gives all memory back"

    def test_a_failed_build_leaves_nothing(self, kit: Path, simulated: SimulatedTensorrt) -> None:
        simulated.failure = "Error Code 9: could not find any implementation for node blocks.0"
        assert "could not find any implementation for node blocks.0" in fail("compile", kit)[1]
        assert [
            p.name for p in (kit.parent / "arm.engines").iterdir() if p.suffix in (".plan", ".json", ".lram-tmp")
        ] == []

    def test_a_full_disk_leaves_nothing(
        self, kit: Path, simulated: SimulatedTensorrt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = Path.write_bytes

        def full(path: Path, data: bytes) -> int:
            if ".plan" in path.name:
                write(path, bytes(data)[:10])
                raise OSError(28, "No space left on device")
            return write(path, data)

        monkeypatch.setattr(Path, "write_bytes", full)
        assert re.search(r"\.plan: no space for it: .* bytes", fail("compile", kit)[1])
        assert [p.name for p in (kit.parent / "arm.engines").iterdir() if "plan" in p.name or "json" in p.name] == []

    def test_without_an_engine_the_error_says_what_to_run(self, kit: Path, simulated: SimulatedTensorrt) -> None:
        with pytest.raises(
            UsageError, match=r"no engine for Simulated Orin .*8\.7.* TensorRT 10\.3\.0; there is none.*"
        ):
            load_policy(kit, target="tensorrt")

    def test_an_engine_of_another_tensorrt_or_gpu_is_not_used(
        self, kit: Path, simulated: SimulatedTensorrt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        succeed("compile", kit)
        monkeypatch.setattr(simulated, "__version__", "10.13.3")
        with pytest.raises(UsageError, match=r"TensorRT 10\.13\.3; there is: tensorrt-10\.3\.0-sm87-fp32"):
            load_policy(kit, target="tensorrt")
        monkeypatch.setattr(simulated, "__version__", "10.3.0")
        monkeypatch.setattr(simulated.gpu, "capability", (11, 0))
        with pytest.raises(UsageError, match=r"compute capability 11\.0"):
            load_policy(kit, target="tensorrt")

    def test_a_bundle_exported_again_does_not_get_the_old_engine(
        self, kit: Path, simulated: SimulatedTensorrt, exported: ExportFunction
    ) -> None:
        succeed("compile", kit)
        shutil.rmtree(kit)
        shutil.copytree(exported("state_ms", "observed", targets=("tensorrt",)), kit)
        with pytest.raises(UsageError, match="no engine for"):
            load_policy(kit, target="tensorrt")

    @pytest.mark.parametrize("damage", ["truncate", "alter", "remove", "description"])
    def test_a_damaged_plan_is_refused(self, kit: Path, simulated: SimulatedTensorrt, damage: str) -> None:
        succeed("compile", kit)
        (plan,) = (kit.parent / "arm.engines").glob("*.plan")
        content = plan.read_bytes()
        if damage == "truncate":
            plan.write_bytes(content[:-1])
        elif damage == "alter":
            plan.write_bytes(content[:-1] + b"?")
        elif damage == "remove":
            plan.unlink()
        else:
            plan.with_suffix(".json").write_text("{")
        with pytest.raises(BundleError, match=r"compile it again with: lram-export compile"):
            load_policy(kit, target="tensorrt")
        succeed("compile", kit, "--force")
        load_policy(kit, target="tensorrt").close()

    def test_a_plan_tensorrt_does_not_accept_is_told(self, kit: Path, simulated: SimulatedTensorrt) -> None:
        succeed("compile", kit)
        (plan,) = (kit.parent / "arm.engines").glob("*.plan")
        key_file = plan.with_suffix(".json")
        plan.write_bytes(b"foreign")
        entry = json.loads(key_file.read_text())
        from lram_export.system.files import file_sha256

        key_file.write_text(json.dumps({**entry, "size": 7, "sha256": file_sha256(plan)}))
        with pytest.raises(BundleError, match="does not accept it on Simulated Orin: not a plan of this version"):
            load_policy(kit, target="tensorrt")

    def test_an_engine_that_acts_otherwise_is_removed(
        self, kit: Path, simulated: SimulatedTensorrt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wrong = kit.parent / "wrong"
        shutil.copytree(kit / "tensorrt", wrong)
        weights = wrong / "model.onnx.data"
        weights.write_bytes(bytes(weights.stat().st_size))
        build = simulated._build

        def build_wrong(logger: object, network: object, config: object) -> bytes | None:
            network.path = str(wrong / "model.onnx")  # type: ignore[attr-defined]
            return build(logger, network, config)

        monkeypatch.setattr(simulated, "_build", build_wrong)
        code, line = fail("compile", kit)
        assert code == 1 and "not what the reference model does: " in line
        assert list((kit.parent / "arm.engines").glob("*.plan")) == []

    def test_a_model_that_does_not_fit_the_gpu_is_told(self, kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        simulated_gpu.install(monkeypatch, SimulatedCuda(memory=1_000_000))
        assert "building needs about" in fail("compile", kit)[1]

    def test_on_a_board_what_the_system_would_give_back_counts_as_free(
        self, simulated: SimulatedTensorrt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gpu = simulated.gpu
        monkeypatch.setattr(gpu, "memory", 1000)
        assert cuda.current_gpu().free_memory == 1000
        board = SimpleNamespace(name=b"Board", major=8, minor=7, integrated=1)
        monkeypatch.setattr(gpu, "cudaGetDeviceProperties", lambda device: (gpu.cudaError_t.cudaSuccess, board))
        assert cuda.current_gpu().free_memory > 1000

    def test_a_failed_build_with_force_keeps_the_engine_that_was_there(
        self, kit: Path, simulated: SimulatedTensorrt
    ) -> None:
        succeed("compile", kit)
        simulated.failure = "out of everything"
        assert "out of everything" in fail("compile", kit, "--force")[1]
        load_policy(kit, target="tensorrt").close()

    def test_a_timing_cache_that_is_refused_is_begun_again(
        self, kit: Path, simulated: SimulatedTensorrt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        succeed("compile", kit)
        take = simulated_gpu._Config.set_timing_cache
        monkeypatch.setattr(
            simulated_gpu._Config,
            "set_timing_cache",
            lambda self, cache, ignore_mismatch: cache.serialize() == b"timed" and take(self, cache, ignore_mismatch),
        )
        succeed("compile", kit, "--force")
        assert (kit.parent / "arm.engines" / "tensorrt-10.3.0-sm87.timing.cache").read_bytes() == b"timed"

    def test_the_last_logits_can_be_read_after_closing(self, kit: Path, simulated: SimulatedTensorrt) -> None:
        succeed("compile", kit)
        with load_policy(kit, target="tensorrt") as policy:
            policy.act(np.zeros(204, np.float32))
            before = policy.action_logits
            runtime: Any = policy.runtime
            output = runtime.step(np.zeros((1, 204), np.float32), *np.zeros((3, 1), np.float32))
            pinned = [memory.array for memory in runtime._host_outputs]  # which closing gives back
            assert not any(np.shares_memory(mine, theirs) for mine in output for theirs in pinned)
        np.testing.assert_array_equal(policy.action_logits, before)
        with pytest.raises(RuntimeError, match="closed"):
            runtime.step(np.zeros((1, 204), np.float32), *np.zeros((3, 1), np.float32))

    def test_an_old_tensorrt_is_refused(self, kit: Path, simulated: SimulatedTensorrt) -> None:
        simulated.__version__ = "8.6.2"
        assert "TensorRT 8.6.2 is too old, 10.0 or newer is needed; JetPack 6.1 brings 10.3" in fail("compile", kit)[1]

    def test_a_driver_older_than_the_bindings_is_told(
        self, kit: Path, simulated: SimulatedTensorrt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gpu = simulated.gpu
        monkeypatch.setattr(gpu, "cudaGetDeviceCount", lambda: (gpu.cudaError_t.cudaErrorInsufficientDriver, None))
        monkeypatch.setattr(gpu, "cudaRuntimeGetVersion", lambda: (gpu.cudaError_t.cudaSuccess, 13000), raising=False)
        assert "the NVIDIA driver serves CUDA 12.6, cuda-bindings here needs 13.0" in fail("compile", kit)[1]

    def test_engines_lie_next_to_the_bundle_whatever_it_is_called(self, tmp_path: Path) -> None:
        assert EngineStore.of(tmp_path / "arm.lram").folder == tmp_path / "arm.engines"
        assert EngineStore.of(tmp_path / "arm").folder == tmp_path / "arm.engines"

    def test_too_little_memory_for_the_state_frees_what_was_taken(
        self, kit: Path, simulated: SimulatedTensorrt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        succeed("compile", kit)
        monkeypatch.setattr(simulated.gpu, "memory", 100_000)
        with pytest.raises(LramError, match="CUDA: cudaErrorMemoryAllocation"):
            load_policy(kit, target="tensorrt")
        assert not simulated.gpu.blocks


class TestSimulation:
    """Guards the guard: what is simulated exists."""

    def test_every_simulated_cuda_call_is_one_of_cuda(self) -> None:
        real = cuda.runtime()
        for name in (n for n in dir(SimulatedCuda) if n.startswith("cuda")):
            assert hasattr(real, name), name
            members = getattr(getattr(SimulatedCuda, name), "__dict__", {})
            for member in (m for m in members if m.startswith("cuda")):
                assert hasattr(getattr(real, name), member), member
        assert {m.name: int(m) for m in simulated_gpu.Status} == {
            m.name: int(getattr(real.cudaError_t, m.name)) for m in simulated_gpu.Status
        }

    def test_every_simulated_member_of_tensorrt_is_one_of_it(self) -> None:
        trt = find_toolkit().module
        pairs = (
            (SimulatedTensorrt, trt),
            (simulated_gpu._Config, trt.IBuilderConfig),
            (simulated_gpu._Engine, trt.ICudaEngine),
            (simulated_gpu._Context, trt.IExecutionContext),
        )
        for simulated, real in pairs:
            names = {n for n in vars(simulated) if not n.startswith("_")} - {"set_flags", "limits", "cache"}
            assert not [n for n in names if not hasattr(real, n)], simulated


class TestOptions:
    def test_an_unknown_device_gets_the_list(self, tmp_path: Path) -> None:
        options = (*load_golden("state_m").task_options, "--target", "tensorrt", "--device", "toaster")
        line = fail("export", load_golden("state_m").checkpoint, "-o", tmp_path / "a.lram", *options)[1]
        assert "unknown device 'toaster'; known: jetson-orin-nano, orin-nx, agx-orin, thor, raspberry-pi-5" in line

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--target", "onnxruntime", "--device", "thor"), "only with --target tensorrt"),
            (("--target", "tensorrt", "--precision", "w8a8"), "target 'tensorrt' cannot run w8a8"),
            (
                ("--target", "tensorrt", "--device", "thor", "--compute-capability", "8.6"),
                "the engine for a device is built on it; give one of them",
            ),
            (("--target", "tensorrt", "--compute-capability", "9.9"), "does not build for 9.9"),
        ],
    )
    def test_options_that_do_not_fit_are_refused(self, options: tuple[str, ...], message: str, tmp_path: Path) -> None:
        golden = load_golden("state_m")
        arguments = (*golden.task_options, *options, "--reference-steps", "4")
        assert message in fail("export", golden.checkpoint, "-o", tmp_path / "a.lram", *arguments)[1]
        assert list(tmp_path.iterdir()) == []

    def test_a_model_too_large_for_the_device_is_refused(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        from lram_export.system import devices

        monkeypatch.setattr(devices, "SYSTEM_BYTES", 7_900_000_000)
        golden = load_golden("state_m")
        options = (*golden.task_options, "--target", "tensorrt", "--device", "jetson-orin-nano")
        line = fail("export", golden.checkpoint, "-o", tmp_path / "a.lram", *options)[1]
        assert "Jetson Orin Nano 8GB leaves 0.1 GB; choose a smaller --precision" in line
        assert list(tmp_path.iterdir()) == []

    def test_only_tensorrt_is_compiled(self, exported: ExportFunction) -> None:
        bundle = exported("state_ms", targets=("onnxruntime",))
        assert "no artifact for target 'tensorrt'" in fail("compile", bundle)[1]
        assert "'onnxruntime' needs no compiling" in fail("compile", bundle, "--target", "onnxruntime")[1]
        assert "unknown target 'tvn'" in fail("compile", bundle, "--target", "tvn")[1]

    def test_without_tensorrt_the_error_has_the_pip_command(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(toolkit, "find_spec", lambda name: None)
        golden = load_golden("state_m")
        options = (*golden.task_options, "--target", "tensorrt")
        line = fail("export", golden.checkpoint, "-o", tmp_path / "a.lram", *options)[1]
        assert "'tensorrt or tensorrt_rtx', which is not installed" in line and "lram-export[tensorrt-rtx]" in line

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"precision": 1}, "precision: expected one of fp32, .*, got 1"),
            ({"tf32": 1}, "tf32: expected true or false, got 1"),
            ({"timing_cache": "../x"}, "timing_cache: expected a file name"),
            (
                {"engines": [{"file": "/etc/passwd", "toolkit": "t", "version": "1", "compute_capabilities": []}]},
                r"engines\[0\].file: expected a file name",
            ),
            ({"engines": [{"file": "a.plan"}]}, r"engines\[0\].compute_capabilities: missing"),
            ({"memory_bytes": -1}, "memory_bytes: expected 0 to"),
        ],
    )
    def test_a_damaged_recipe_names_the_field(self, kit: Path, change: dict[str, object], message: str) -> None:
        recipe = kit / "tensorrt" / "recipe.json"
        recipe.write_text(json.dumps({**json.loads(recipe.read_text()), **change}))
        with pytest.raises(BundleError, match=message):
            read_recipe(kit / "tensorrt")


class TestUnknownGpu:
    """TensorRT for RTX builds an engine for an H100 without a word, which it then does not load."""

    def test_it_is_refused_before_anything_is_built_with_what_runs_there(
        self, exported: ExportFunction, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = exported("state_ms", targets=("tensorrt",))
        gpu = SimulatedCuda()
        gpu.capability = (9, 0)
        monkeypatch.setattr(cuda, "runtime", lambda: gpu)
        for command in (("compile", path, "--force"), ("verify", path)):
            _, line = fail(*command, "--target", "tensorrt")
            assert "does not run on Simulated Orin (compute capability 9.0; it does on 8.0, 8.6, 8.9" in line
            assert "--target tvm --platform cuda-sm90" in line
        gpu.capability = (8, 6)
        assert refusal(find_toolkit(), cuda.current_gpu()) is None


class TestGpuCheck:
    """`benchmarks/gpu_check.py`, as far as no GPU is needed."""

    @pytest.fixture
    def check(self) -> ModuleType:
        path = Path(__file__).parent.parent.parent / "benchmarks" / "gpu_check.py"
        spec = importlib.util.spec_from_file_location("gpu_check", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["gpu_check"] = module  # dataclasses look themselves up there
        spec.loader.exec_module(module)
        return module

    def test_without_a_gpu_it_says_so_in_one_line(self, check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
        if cuda.unavailable() is None:
            pytest.skip("this machine has a GPU")
        assert check.main([]) == 2
        assert capsys.readouterr().err.startswith("error: no NVIDIA")

    @SLOW
    def test_on_a_gpu_it_writes_every_case(
        self, check: ModuleType, simulated: SimulatedTensorrt, exported: ExportFunction, tmp_path: Path
    ) -> None:
        model, output = str(load_golden("state_ms").checkpoint), tmp_path / "gpu.json"
        options = ["--precision", "fp32", "--batch", "2", "--steps", "10", "--target", "tensorrt"]
        assert check.main(["--model", model, "--model", "nowhere.zip", *options, "-o", str(output)]) == 0
        document = json.loads(output.read_text())
        assert document["machine"]["compute_capability"] == "8.7" and document["machine"]["bandwidth"] > 0
        case, broken = document["cases"]
        found = case["ways"]["tensorrt"]
        assert found["parity"]["passed"] and found["p99_ms"] >= found["p50_ms"] > 0
        spec = Bundle.open(exported("state_ms", batch=2, targets=("tensorrt",))).manifest.spec
        floor = check.floor_ms(found["weight_bytes"], spec, case["bandwidth"])
        assert found["floor_ratio"] == pytest.approx(found["p50_ms"] / floor)
        assert all("error" in case["ways"][name] for name in ("onnxruntime_cuda", "torch_eager")), "no GPU here"
        assert "nowhere.zip" in broken["ways"]["checkpoint"]["error"]
        assert "tensorrt" in check.summary(case) and "nowhere.zip" in check.summary(broken)

    def test_the_torch_step_it_times_is_the_step(self, check: ModuleType) -> None:
        checkpoint = check.load_model(check.Case(str(load_golden("state_ms").checkpoint), "fp32", 1))
        policy = check.lower(checkpoint, check.resolve_task(check.TASK), name="policy", batch_size=1)
        step = check.torch_step(policy, check.Case("", "fp32", 1), "cpu")
        first, second = step().clone(), step()
        assert first.shape == (1, 4) and not np.array_equal(first, second), "the state moves on"

    def test_a_size_may_name_its_backbone_and_how_it_acts(self, check: ModuleType) -> None:
        checkpoint = check.load_model(check.Case("decision_transformer-16m", "fp32", 1, "cache"))
        assert checkpoint.config.backbone.kind == "decision_transformer" and checkpoint.config.context == "cache"
        assert check.load_model(check.Case("16m", "fp32", 1)).config.backbone.kind == "xlstm"

    def test_the_floor_counts_weights_once_and_the_state_twice(
        self, check: ModuleType, exported: ExportFunction
    ) -> None:
        spec = Bundle.open(exported("state_ms", targets=("tensorrt",))).manifest.spec
        state = 4 * sum(t.size for t in spec.states)
        assert check.floor_ms(1_000_000, spec, 1e9) == pytest.approx((1_000_000 + 2 * state) / 1e6)
