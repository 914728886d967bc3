"""`lram-export compare`: what two bundles make of the same inputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lram_export.bundle.bundle import Bundle
from tests.conftest import ExportFunction, fail, load_golden, succeed


@pytest.fixture
def fp32(exported: ExportFunction) -> Path:
    return exported("state_ms", targets=("onnxruntime", "native"))


@pytest.fixture
def int8(exported: ExportFunction) -> Path:
    options = (*load_golden("state_ms").task_options, "--precision", "int8")
    return exported("state_ms", targets=("onnxruntime", "native"), options=options)


def test_a_bundle_does_not_differ_from_itself(fp32: Path) -> None:
    document = json.loads(succeed("compare", fp32, fp32, "--json").stdout)
    difference = document["difference"]
    assert difference["actions_different"] == 0 and difference["max_logit_error"] == 0
    assert document["first_different_step"] is None and document["largest_difference"] == 0
    assert difference["steps"] == 64 and difference["actions"] == 64 * 8


def test_two_targets_of_a_bundle_agree_to_the_tolerance(fp32: Path) -> None:
    arguments = ("compare", fp32, fp32, "--target", "native", "--second-target", "onnxruntime", "--json")
    document = json.loads(succeed(*arguments).stdout)
    assert (document["first"]["target"], document["second"]["target"]) == ("native", "onnxruntime")
    assert 0 < document["difference"]["max_logit_error"] < 1e-4


def test_it_finds_what_the_export_said_quantization_costs(fp32: Path, int8: Path) -> None:
    """The oracle's cost is in the manifest; the same steps run on a target agree with it closely."""
    cost = json.loads((int8 / "manifest.json").read_text())["quantization"]["cost"]
    document = json.loads(succeed("compare", fp32, int8, "--target", "native", "--json").stdout)
    difference = document["difference"]
    assert difference["relative_error"] == pytest.approx(cost["relative_error"], rel=0.02)
    assert abs(difference["actions_different"] - cost["actions_different"]) <= 3
    assert document["first_different_step"] is not None and document["largest_difference"] >= 2 / 256
    first, second = document["first"], document["second"]
    assert (first["precision"], second["precision"]) == ("fp32", "int8")
    assert second["weight_bytes"] < first["weight_bytes"] and min(first["p50_ms"], second["p50_ms"]) > 0


def test_the_table_says_how_often_and_how_far(fp32: Path, int8: Path) -> None:
    text = succeed("compare", fp32, int8).stdout
    assert "of 512 action values differ" in text and "by more than one bin" in text and "p50 ms" in text


def test_a_recording_can_be_the_input(fp32: Path, int8: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    steps = {
        "observation": rng.standard_normal((20, 1, 204)).astype(np.float32),
        "return_to_go": np.ones((20, 1), np.float32),
        "reward": np.zeros((20, 1), np.float32),
        "is_first": np.zeros((20, 1), np.float32),
    }
    steps["is_first"][[0, 10]] = 1
    np.savez(tmp_path / "steps.npz", **steps)
    document = json.loads(succeed("compare", fp32, int8, "--recording", tmp_path / "steps.npz", "--json").stdout)
    assert document["difference"]["steps"] == 20
    np.savez(tmp_path / "large.npz", **{**steps, "observation": np.full((20, 1, 204), 1e30, np.float32)})
    code, line = fail("compare", fp32, int8, "--recording", tmp_path / "large.npz")
    assert code == 1 and "large.npz: observation: expected finite values of magnitude up to" in line
    np.savez(tmp_path / "rows.npz", **{name: np.repeat(array, 2, axis=1) for name, array in steps.items()})
    line = fail("compare", fp32, int8, "--recording", tmp_path / "rows.npz")[1]
    assert "has rows of 2; the bundles step 1 at a time" in line


def test_two_checkpoints_are_compared_although_their_inputs_have_other_limits(exported: ExportFunction) -> None:
    options = ("--task", "metaworld/reach-v2")
    bundles = [exported(name, targets=("native",), options=options) for name in ("state_m", "state_ms")]
    limits = [Bundle.open(bundle).manifest.spec.limits for bundle in bundles]
    assert limits[0] != limits[1]
    text = succeed("compare", *bundles).stdout
    assert "of 256 action values differ, first at step 0" in text and "e+02%" not in text


def test_bundles_that_cannot_be_compared_are_refused_naming_both(fp32: Path, exported: ExportFunction) -> None:
    *options, _ = load_golden("state_ms").task_options  # the last one is the value of --action-dim
    other = exported("state_ms", targets=("native",), options=(*options, "3"))
    line = fail("compare", fp32, other, "--target", "native")[1]
    assert "outputs differ: " in line and str(fp32) in line and str(other) in line
    batch = exported("state_ms", batch=3, targets=("native",))
    assert "observation float32 of shape (1, 204)" in fail("compare", fp32, batch, "--target", "native")[1]
    assert "no such bundle" in fail("compare", fp32, "nowhere.lram")[1]
    assert "no artifact for target 'openvino'" in fail("compare", fp32, fp32, "--target", "openvino")[1]
