"""Bundles that earlier versions wrote (`tests/bundles`, int8, an mLSTM and an sLSTM block) are read and run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lram_export import Bundle, BundleError, load_policy
from lram_export.bundle.manifest import SCHEMA_VERSION, read_manifest
from lram_export.model.config import read_model
from lram_export.verification.consistency import check_model
from lram_export.verification.verify import load_bundle_reference, verify_targets

OLDER = Path(__file__).parent.parent / "bundles"
VERSIONS = (2, 3, 6)
TARGETS = ("onnxruntime", "openvino", "pytorch")


@pytest.mark.parametrize("version", VERSIONS)
class TestOlder:
    def test_it_verifies_on_every_target(self, version: int) -> None:
        bundle = Bundle.open(OLDER / f"schema-{version}.lram")
        assert json.loads((bundle.path / "manifest.json").read_text())["schema_version"] == version
        results = verify_targets(bundle, TARGETS, threads=1)
        assert all(result.passed for result in results.values())

    def test_it_acts_and_starts_again(self, version: int) -> None:
        bundle = Bundle.open(OLDER / f"schema-{version}.lram")
        reference = load_bundle_reference(bundle)
        with load_policy(bundle.path, "onnxruntime") as policy:
            first = policy.act(reference.inputs["observation"][0])
            policy.act(reference.inputs["observation"][1])
            policy.reset()
            np.testing.assert_array_equal(policy.act(reference.inputs["observation"][0]), first)
            state = policy.state()
            assert (state["state.1.m"] != np.float32(-1e30)).any()

    def test_it_says_of_a_step_what_the_model_says(self, version: int) -> None:
        bundle = Bundle.open(OLDER / f"schema-{version}.lram")
        check_model(bundle)
        roles = {state.name: state.role for state in bundle.manifest.spec.states}
        assert roles["state.0.C"] == "matrix" and roles["state.1.m"] == "stabilizer"
        assert read_model(bundle.manifest.model, bundle.path).backbone.num_blocks == 2

    def test_which_targets_read_the_codes_is_known(self, version: int) -> None:
        manifest = Bundle.open(OLDER / f"schema-{version}.lram").manifest
        assert [entry.target for entry in manifest.artifacts if entry.reads_codes] == ["onnxruntime", "pytorch"]

    def test_as_written_now_it_is_the_same(self, version: int) -> None:
        manifest = Bundle.open(OLDER / f"schema-{version}.lram").manifest
        written = json.loads(manifest.dumps())
        assert written["schema_version"] == SCHEMA_VERSION
        if version >= 3:  # before, the cost over the recorded steps and the limits were not there
            assert read_manifest(manifest.dumps()) == manifest


def test_a_newer_one_is_refused_with_what_to_do(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(OLDER / "schema-3.lram", tmp_path / "copy.lram"))
    path = copy / "manifest.json"
    document = json.loads(path.read_text())
    document["schema_version"] = SCHEMA_VERSION + 1
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=f"has {SCHEMA_VERSION + 1}, .* reads up to {SCHEMA_VERSION}; update"):
        Bundle.open(copy)


def test_an_unknown_backbone_is_named(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(OLDER / "schema-3.lram", tmp_path / "copy.lram"))
    model = read_model(Bundle.open(copy).manifest.model, copy).to_json()
    model["backbone"]["kind"] = "hyena"
    with pytest.raises(BundleError, match=r"model.backbone.kind: this lram-export knows .*, got 'hyena'; update"):
        read_model(model, copy)
