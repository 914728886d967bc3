"""A policy exported again gives the same files, to the byte: their digests say what a robot runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lram_export.checkpoints.random import random_checkpoint
from lram_export.export import ExportOptions, export_bundle
from lram_export.quantization.quantize import QuantizationOptions
from lram_export.spec.tasks import TaskSpec
from tests.conftest import SLOW
from tests.models import lram

SIZES = {"state_dim": 7, "image_shape": None, "act_dim": 3, "action_channels": 16, "discrete_actions": 4}
TASK = TaskSpec("custom", "state", 5, "continuous", 2, 3.0, 2.0)
TARGETS = ("pytorch", "onnxruntime", "openvino", "native", "tvm")
MODEL = lram(32, 2, 2, 64, slstm_at=(1,), slstm_num_heads=2, ffn_size=64, **SIZES)  # type: ignore[arg-type]


def files(folder: Path, precision: str) -> dict[str, bytes]:
    """An export's files but for its manifest, which says when it was made."""
    options = ExportOptions(TARGETS, reference_steps=8, quantization=QuantizationOptions(precision), report=False)
    folder.mkdir()
    bundle = export_bundle(random_checkpoint(MODEL, Path("random"), seed=1), TASK, folder / "policy.lram", options)
    assert {artifact.target for artifact in bundle.manifest.artifacts} == set(TARGETS)
    found = {str(f.relative_to(bundle.path)): f.read_bytes() for f in bundle.path.rglob("*") if f.is_file()}
    del found["manifest.json"]
    return found


@pytest.mark.parametrize("precision", ["int8", *(pytest.param(p, marks=SLOW) for p in ("fp32", "int4"))])
def test_the_same_policy_gives_the_same_files(precision: str, tmp_path: Path) -> None:
    """Whatever else the process has exported before."""
    first = files(tmp_path / "first", precision)
    again = files(tmp_path / "again", precision)
    assert first.keys() == again.keys()
    assert [name for name in first if first[name] != again[name]] == []
