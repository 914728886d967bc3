"""A closed file is stateful in OpenVINO by its own pass, and `reset_state()` alone begins an episode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lram_export import load_policy
from tests.conftest import ExportFunction, succeed
from tests.conversion.closed import fed_back, observed


@pytest.mark.parametrize("names", ["state", "packed"])
def test_reset_state_begins_an_episode(names: str, exported: ExportFunction, tmp_path: Path) -> None:
    import openvino as ov
    from openvino._offline_transformations import apply_make_stateful_transformation

    bundle, path = exported("state_ms", targets=("onnxruntime",)), tmp_path / "closed.onnx"
    succeed("convert", bundle, "--to", "onnx-closed", "--names", names, "-o", path, "--quiet")
    model = ov.Core().read_model(path)
    inputs = {port.any_name for port in model.inputs}
    outputs = [port.any_name for port in model.outputs]
    pairs = {into: out for out in outputs if (into := fed_back(out, names)) in inputs}
    apply_make_stateful_transformation(model, pairs)
    (observation,), (action,) = ([port.any_name for port in ports] for ports in (model.inputs, model.outputs))
    request = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    with load_policy(bundle, threads=1) as policy:
        for _ in range(2):
            policy.reset()
            request.reset_state()
            for step in observed(bundle):
                found = request.infer({observation: step["observation"]})[action]
                np.testing.assert_array_equal(found, policy.step(step)["action"])
