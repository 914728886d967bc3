"""What only the target `openvino` has: a model that runs by itself, a cache of compiled models, devices."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from lram_export import load_policy
from lram_export.bundle.bundle import Bundle
from lram_export.checkpoints.folder import save_checkpoint
from lram_export.checkpoints.random import random_checkpoint
from lram_export.runtimes import openvino as runtime
from lram_export.system.cache import FOLDER_VARIABLE, KEPT, CompileCache
from lram_export.verification.verify import load_bundle_reference
from tests.conftest import SLOW, ExportFunction, fail, load_golden, succeed
from tests.models import lram
from tests.tamper.bundles import seal

STEPS = 8


@pytest.fixture
def bundle(exported: ExportFunction) -> Path:
    return exported("state_ms", targets=("openvino",))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    return folder


def logits(bundle: Path) -> np.ndarray:
    inputs = np.random.default_rng(0).standard_normal((STEPS, 204)).astype(np.float32)
    with load_policy(bundle, "openvino", threads=1) as policy:
        found = []
        for observation in inputs:
            policy.act(observation)
            found.append(policy.action_logits)
    return np.stack(found)


class TestModel:
    def test_openvino_alone_reads_it_and_starts_at_the_initial_values(self, bundle: Path) -> None:
        """The recorded steps, whose first starts no episode here: the variables must start right by themselves."""
        reference = load_bundle_reference(Bundle.open(bundle))
        model = ov.Core().read_model(bundle / "openvino" / "model.xml")
        request = ov.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
        with load_policy(bundle, "openvino", threads=1) as policy:
            for observation, return_to_go, reward, _ in list(reference.inputs)[:STEPS]:
                going_on = np.zeros(1, np.float32)
                expected = policy.runtime.step(observation, return_to_go, reward, going_on)
                request.infer([observation, return_to_go, reward, going_on])
                found = request.get_tensor("action_logits").data
                np.testing.assert_allclose(found, expected.action_logits, atol=1e-5, rtol=0)

    def test_its_variables_have_the_names_of_the_state(self, bundle: Path) -> None:
        model = ov.Core().read_model(bundle / "openvino" / "model.xml")
        names = {variable.info.variable_id for variable in model.get_variables()}
        assert names == {tensor.name for tensor in Bundle.open(bundle).manifest.spec.states}

    def test_what_a_step_adds_to_a_memory_is_no_matrix_of_its_own(self, bundle: Path) -> None:
        compiled = ov.compile_model(bundle / "openvino" / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        memories = {tuple(t.shape) for t in Bundle.open(bundle).manifest.spec.states if t.role == "matrix"}
        as_large = {
            str(op.get_rt_info()["layerType"].astype(str))
            for op in compiled.get_runtime_model().get_ops()
            if any(tuple(output.get_shape()) in memories for output in op.outputs())
        }
        assert as_large == {"MemoryInput", "Subgraph"}  # read, and decayed and added to in one pass

    def test_fresh_state_shows_the_initial_values(self, bundle: Path) -> None:
        with load_policy(bundle, "openvino") as policy:
            assert (policy.state()["state.1.m"] == np.float32(-1e30)).all()

    def test_a_model_that_openvino_refuses_is_named(self, bundle: Path, tmp_path: Path) -> None:
        odd = Path(shutil.copytree(bundle, tmp_path / "odd.lram"))
        model = odd / "openvino" / runtime.MODEL_FILE
        model.write_text(model.read_text().replace('type="MatMul"', 'type="Nothing"'))
        seal(odd)
        code, line = fail("verify", odd, "--target", "openvino")
        assert code == 1 and "model.xml: OpenVINO cannot load it on CPU" in line and "Nothing" in line


class TestDevice:
    @pytest.mark.parametrize("device", ["GPU", "NPU", "TOASTER"])
    def test_one_that_is_absent_is_named_with_those_that_are_here(
        self, device: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if device in ov.Core().available_devices:
            pytest.skip(f"this machine has a {device}")
        monkeypatch.setenv(runtime.DEVICE_VARIABLE, device)
        code, line = fail("verify", bundle)
        assert code == 2
        assert line == f"error: LRAM_OPENVINO_DEVICE: OpenVINO finds no device '{device}' here; it finds: CPU"


class TestCache:
    def test_the_second_load_takes_what_the_first_compiled(
        self, bundle: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = logits(bundle)
        assert len(list(empty_cache.glob("openvino/*.bin"))) == 1

        def compile_model(*_: object) -> None:
            raise AssertionError("compiled again")

        monkeypatch.setattr(ov.Core, "compile_model", compile_model)
        np.testing.assert_array_equal(logits(bundle), first)

    def test_a_damaged_file_is_compiled_again(self, bundle: Path, empty_cache: Path) -> None:
        first = logits(bundle)
        (path,) = empty_cache.glob("openvino/*.bin")
        whole = path.read_bytes()
        for damaged in (whole[:-100], b"", whole[:5000] + b"\xff" + whole[5001:]):
            path.write_bytes(damaged)
            np.testing.assert_array_equal(logits(bundle), first)
            assert path.read_bytes() != damaged

    def test_it_can_be_switched_off(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(FOLDER_VARIABLE, "")
        assert CompileCache.of("openvino").folder is None
        logits(bundle)

    def test_a_folder_that_cannot_be_written_stops_nobody(
        self, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "file"))
        assert np.isfinite(logits(bundle)).all()

    def test_by_default_it_is_in_the_users_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(FOLDER_VARIABLE)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert CompileCache.of("openvino").folder == tmp_path / "lram-export" / "openvino"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert CompileCache.of("openvino").folder == tmp_path / ".cache" / "lram-export" / "openvino"

    def test_what_was_not_used_for_longest_goes(self, tmp_path: Path) -> None:
        cache = CompileCache(tmp_path)
        for number in range(KEPT + 3):
            cache.write({"number": number}, memoryview(bytes([number])))
            assert cache.read({"number": 0}) is not None
        kept = [number for number in range(KEPT + 3) if cache.read({"number": number}) is not None]
        assert len(kept) == KEPT and kept[0] == 0 and kept[-1] == KEPT + 2


INTEGER_TYPES = {"int8": "i8", "int8g": "i8", "int4": "i4"}
"""Element types of the constants that a compiled product must hold."""


class TestPrecision:
    @pytest.mark.parametrize("precision", INTEGER_TYPES)
    def test_the_processor_keeps_the_weights_compressed(self, precision: str, exported: ExportFunction) -> None:
        bundle = quantized(exported, precision)
        compiled = ov.compile_model(bundle / "openvino" / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        matrices = Bundle.open(bundle).manifest.quantization.matrices  # type: ignore[union-attr]
        executed = compiled.get_runtime_model().get_ops()
        compressed = [
            op
            for op in executed
            if str(op.get_rt_info()["layerType"].astype(str)) == "FullyConnected"
            and op.input(1).get_element_type().get_type_name() == INTEGER_TYPES[precision]
        ]
        assert len(compressed) == len(matrices) > 0

    @pytest.mark.parametrize("precision", [*INTEGER_TYPES, *(pytest.param(p, marks=SLOW) for p in ("bf16", "fp16"))])
    def test_it_computes_the_codes_and_keeps_activations_in_float32(
        self, precision: str, exported: ExportFunction
    ) -> None:
        parity = Bundle.open(quantized(exported, precision)).artifact("openvino").parity
        assert parity is not None and parity.passed and parity.activations == "float32"
        assert parity.relative_error is not None and parity.relative_error < 1e-4

    def test_a_precision_it_cannot_run_is_refused_with_those_it_can(self, tmp_path: Path) -> None:
        golden = load_golden("state_ms")
        output = tmp_path / "a.lram"
        arguments = (*golden.task_options, "--target", "openvino", "--precision", "w8a8")
        code, line = fail("export", golden.checkpoint, "-o", output, *arguments)
        assert code == 2 and "target 'openvino' cannot run w8a8" in line
        assert "openvino: fp32, fp16, bf16, int8, int8g, int4, mixed" in line


def quantized(exported: ExportFunction, precision: str) -> Path:
    options = [*load_golden("state_ms").task_options, "--precision", precision]
    return exported("state_ms", targets=("openvino",), options=options)


def test_int4_widths_that_end_within_a_group_are_padded(tmp_path: Path) -> None:
    config = lram(hidden_size=96, num_blocks=2, inner_size=160, num_heads=4, image_shape=None, state_dim=39)
    save_checkpoint(random_checkpoint(config, tmp_path / "checkpoint"), tmp_path / "checkpoint")
    options = ("--task", "metaworld/reach-v2", "--target", "openvino", "--precision", "int4", "--no-report")
    succeed("export", tmp_path / "checkpoint", "-o", tmp_path / "odd.lram", *options)  # verified by the export
