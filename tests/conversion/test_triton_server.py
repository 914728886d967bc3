"""What is written for Triton, with NVIDIA's own protobuf and the server that `nvidia-pytriton` ships; run by
`make test-consumers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ExportFunction, load_golden, succeed
from tests.conversion.pbtxt import read
from tests.conversion.test_consumers import ROOT, environment, played
from tests.conversion.triton_server import serving

pytestmark = pytest.mark.consumers
PROGRAM = Path(__file__).parent / "consumers" / "triton_config.py"


@pytest.fixture(scope="module")
def bundle(exported: ExportFunction) -> Path:
    options = (*load_golden("state_ms").task_options, "--precision", "int8")
    return exported("state_ms", targets=("onnxruntime", "native"), options=options)


@pytest.mark.parametrize("backend", ["onnx", "python"])
def test_the_protobuf_of_tritonclient_parses_the_configuration(backend: str, bundle: Path, tmp_path: Path) -> None:
    options = ("--backend", backend, "--sequences", "7", "--idle", "3")
    succeed("convert", bundle, "--to", "triton", *options, "-o", tmp_path / "reach")
    found: dict[str, Any] = played(environment("triton"), PROGRAM, tmp_path / "reach" / "config.pbtxt")
    batching = found["sequence_batching"]
    assert found["name"] == "reach" and batching["oldest"] == {"max_candidate_sequences": 7}
    assert batching["max_sequence_idle_microseconds"] == "3000000"
    own = read((tmp_path / "reach" / "config.pbtxt").read_text())
    assert [port["name"] for port in found["input"]] == [port["name"][0] for port in own["input"]]
    assert len(batching.get("state", ())) == len(own["sequence_batching"][0].get("state", ()))
    assert all(state["initial_state"][0]["zero_data"] for state in batching.get("state", ()))


@pytest.mark.parametrize("target", ["native", "onnxruntime"])
def test_the_server_acts_as_private_policies_do(target: str, bundle: Path, tmp_path: Path) -> None:
    """Three interleaved sequences, whose numbers are used again."""
    models = tmp_path / "models"
    models.mkdir()
    options = ("--backend", "python", "--target", target)
    succeed("convert", bundle, "--to", "triton", *options, "-o", models / "reach")
    python = environment("triton")
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    with serving(models, packages, tmp_path / "server") as address:
        program = ROOT / "examples" / "servers" / "check.py"
        found = played(python, program, "triton", address, "reach", bundle, target)
    assert found["different"] == 0 and found["actions"] == 6 * 64 * 8, found
