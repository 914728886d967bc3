"""A bundle's ONNX model opens by its path, without lram-export: in ONNX Runtime, ONNX's own checks and OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from lram_export import Bundle, ExportOptions, LramError, export_bundle, load_policy
from lram_export.episodes.steps import random_steps, save_steps
from lram_export.export import TargetFailure
from lram_export.quantization.quantize import QuantizationOptions
from lram_export.runtimes import load_runtime
from tests.conftest import SLOW, ExportFunction, load_golden
from tests.step_module.modules import POLICIES

LONG = ("int8g", "fp32", "fp16", "bf16")
PRECISIONS = ("int8", "int4", "w8a8", *(pytest.param(precision, marks=SLOW) for precision in LONG))
"""All forms in which a product is written; a mixture has some of them."""
STEPS = 24


@pytest.fixture(scope="module", params=PRECISIONS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of a module with a vector, an image and a state that does not start at zero."""
    folder, policy = tmp_path_factory.mktemp(request.param), POLICIES["seeing"]()
    recordings: tuple[Path, ...] = ()
    if request.param == "w8a8":
        recordings = (folder / "steps.npz",)
        save_steps(random_steps(policy.spec(1), None, 400, seed=11, episode=40), recordings[0])
    quantization = QuantizationOptions(request.param, calibration=recordings)
    options = ExportOptions(("onnxruntime", "pytorch"), report=False, quantization=quantization)
    return export_bundle(policy, None, folder / "own.lram", options)


def own_steps(bundle: Bundle) -> list[dict[str, NDArray[Any]]]:
    """What our runtime makes of the recorded steps."""
    runtime = load_runtime("onnxruntime", bundle.load_artifact("onnxruntime"), threads=1)
    names = [output.name for output in bundle.manifest.spec.outputs]
    found = []
    for step in recorded(bundle):
        output = runtime.step(*(step[tensor.name] for tensor in bundle.manifest.spec.inputs))
        found.append({name: np.array(value) for name, value in zip(names, output, strict=True)})
    runtime.close()
    return found


def recorded(bundle: Bundle) -> list[dict[str, NDArray[Any]]]:
    with np.load(bundle.path / "reference.npz") as file:
        arrays = {tensor.name: file[tensor.name] for tensor in bundle.manifest.spec.inputs}
    return [{name: values[step] for name, values in arrays.items()} for step in range(STEPS)]


def plain_steps(bundle: Bundle) -> list[dict[str, NDArray[Any]]]:
    """The same steps as a stranger takes them, who has the model's path and what the model says."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_free_dimension_override_by_name("rows", 1)
    session = onnxruntime.InferenceSession(str(bundle.path / "onnxruntime" / "model.onnx"), options)
    state = initial_state(bundle)
    names, found = [port.name for port in session.get_outputs()], []
    for step in recorded(bundle):
        outputs = dict(zip(names, session.run(names, {**step, **state}), strict=True))
        state = {name: outputs.pop(f"next_{name}") for name in state}
        found.append(outputs)
    return found


def initial_state(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """NaN: a step that starts an episode ignores its state."""
    return {tensor.name: np.full(tensor.shape, np.nan, np.float32) for tensor in bundle.manifest.spec.states}


class TestOneModel:
    def test_onnx_runtime_computes_the_same_to_the_bit(self, bundle: Bundle) -> None:
        for one, other in zip(own_steps(bundle), plain_steps(bundle), strict=True):
            for name, value in one.items():
                np.testing.assert_array_equal(value, other[name], err_msg=name)

    def test_it_passes_the_checks_of_onnx_and_loads_whole(self, bundle: Bundle) -> None:
        path = bundle.path / "onnxruntime" / "model.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        assert all(not onnx.external_data_helper.uses_external_data(t) for t in onnx.load(path).graph.initializer)

    def test_openvino_reads_it_and_computes_the_same(self, bundle: Bundle) -> None:
        import openvino as ov

        model = ov.Core().read_model(bundle.path / "onnxruntime" / "model.onnx")
        model.reshape({port: [1, *(size.get_length() for size in port.partial_shape[1:])] for port in model.inputs})
        exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        compiled, state = ov.Core().compile_model(model, "CPU", exact), initial_state(bundle)
        for step, expected in zip(recorded(bundle), own_steps(bundle), strict=True):
            result = compiled({**step, **state})
            state = {name: np.array(result[f"next_{name}"]) for name in state}
            for name, value in expected.items():
                error = np.linalg.norm(result[name] - value) / max(np.linalg.norm(value), 1.0)
                assert error < 2e-3, (name, error)

    def test_the_codes_are_in_the_bundle_once_and_beside_the_model(self, bundle: Bundle) -> None:
        found = [path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("quantized.safetensors")]
        assert found == ([] if bundle.manifest.precision == "fp32" else ["onnxruntime/quantized.safetensors"])


def test_an_lram_acts_by_its_path_alone(exported: ExportFunction) -> None:
    options = (*load_golden("state_ms").task_options, "--precision", "int8")
    bundle = Bundle.open(exported("state_ms", targets=("onnxruntime", "native"), options=options))
    for one, other in zip(own_steps(bundle), plain_steps(bundle), strict=True):
        np.testing.assert_array_equal(one["action"], other["action"])
        np.testing.assert_array_equal(one["action_logits"], other["action_logits"])


@pytest.mark.parametrize("place", ["exporters.onnxruntime.save_onnx", "runtimes.onnxruntime.check_session"])
def test_codes_of_a_model_that_was_left_out_stay_for_the_others(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it could not be written or did not pass."""

    def broken(*arguments: object, **options: object) -> None:
        raise LramError("not today")

    monkeypatch.setattr(f"lram_export.{place}", broken)
    failures: dict[str, TargetFailure] = {}
    options = ExportOptions(
        ("onnxruntime", "pytorch"), report=False, quantization=QuantizationOptions("int8"), reference_steps=8
    )
    bundle = export_bundle(POLICIES["plain"](), None, tmp_path / "own.lram", options, failures=failures)
    assert set(failures) == {"onnxruntime"} and bundle.targets == ("pytorch",)
    assert (bundle.path / "quantized.safetensors").is_file() and not (bundle.path / "onnxruntime").exists()
    load_policy(bundle.path, "pytorch", threads=1).close()
