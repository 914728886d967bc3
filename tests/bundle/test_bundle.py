"""Bundles: written whole or not at all, and refused when anything in them is not as the manifest says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lram_export import Bundle, BundleError, LramError, load_policy
from lram_export.bundle.manifest import read_manifest
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.export import ExportOptions, export_bundle
from lram_export.exporters.onnx import graph, queries
from lram_export.lowering import lower
from lram_export.spec.tasks import resolve_task
from lram_export.verification.verify import verify_targets
from tests.conftest import GOLDEN, ExportFunction

STATE_M = GOLDEN / "state_m" / "model.zip"


@pytest.fixture
def bundle(exported: ExportFunction, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(exported("state_m"), tmp_path / "copy.lram"))


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def open_and_load(bundle: Path) -> None:
    load_policy(bundle, "onnxruntime").close()


class TestContents:
    def test_the_folder_holds_what_the_manifest_lists_and_nothing_else(self, bundle: Path) -> None:
        listed = {f.path for f in Bundle.open(bundle).files()} | {"manifest.json"}
        assert {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()} == listed

    def test_no_path_of_this_machine_is_in_it(self, bundle: Path) -> None:
        for path in bundle.rglob("*"):
            if path.is_file():
                assert str(Path.cwd()).encode() not in path.read_bytes(), path

    def test_manifest_round_trip(self, bundle: Path) -> None:
        text = (bundle / "manifest.json").read_text()
        assert json.loads(read_manifest(text).dumps()) == json.loads(text)

    def test_every_artifact_carries_its_proof(self, bundle: Path) -> None:
        for entry in Bundle.open(bundle).manifest.artifacts:
            assert entry.parity is not None and entry.parity.passed and entry.parity.steps == 64

    def test_recorded_steps_cover_both_semantics_and_a_reset(self, bundle: Path) -> None:
        with np.load(bundle / "reference.npz") as reference:
            assert len(reference["observation"]) == 64
            assert (reference["reward"][:32] == 0).all() and (reference["reward"][32:] != 0).any()
            assert reference["is_first"][0].all() and reference["is_first"][1:].sum() == 1

    def test_rows_of_a_batch_reset_at_different_steps(self, exported: ExportFunction) -> None:
        with np.load(exported("state_ms", "observed", batch=3) / "reference.npz") as reference:
            starts = [np.flatnonzero(reference["is_first"][:, row])[1] for row in range(3)]
        assert len(set(starts)) == 3


class TestOnnx:
    def test_the_same_policy_gives_the_same_graph(self) -> None:
        """The translation itself, and the one that the session keeps for all exports that are the same
        (`tests/once.py`), which another process may have made."""
        kept, translate = graph._translate, getattr(graph._translate, "__wrapped__")  # noqa: B009
        checkpoint, task = load_checkpoint(GOLDEN / "state_ms" / "model.zip"), resolve_task("metaworld/reach-v2")
        translated = [by(lower(checkpoint, task, name=name)) for by, name in ((kept, "one"), (translate, "other"))]
        one, other = (onnx_ir.serde.serialize_model(model).SerializeToString() for model in translated)
        assert one == other

    @pytest.mark.parametrize("name", ["state_m", "state_ms", "image_m"])
    def test_standard_operators_names_and_metadata(self, name: str, exported: ExportFunction) -> None:
        path = exported(name)
        spec = Bundle.open(path).manifest.spec
        model = onnx.load(path / "onnxruntime" / "model.onnx")
        assert {n.domain for n in model.graph.node} == {""}
        assert [o.version for o in model.opset_import if o.domain == ""] == [18]
        assert tuple(i.name for i in model.graph.input) == spec.input_names
        assert tuple(o.name for o in model.graph.output) == spec.output_names
        assert spec.output_names[:2] == ("action", "action_logits") and "next_state.0.C" in spec.output_names
        properties = {p.key: p.value for p in model.metadata_props}
        assert json.loads(properties["lram.task"])["reward_feedback"] == "none"
        assert json.loads(properties["lram.state_initial"])["default"] == 0.0
        onnx.checker.check_model(model, full_check=True)

    def test_slstm_initial_values_are_in_the_metadata(self, exported: ExportFunction) -> None:
        model = onnx.load(exported("state_ms") / "onnxruntime" / "model.onnx", load_external_data=False)
        properties = {p.key: p.value for p in model.metadata_props}
        assert json.loads(properties["lram.state_initial"]) == {"default": 0.0, "state.1.m": -1e30}

    def test_memory_is_selected_in_a_branch_that_other_steps_do_not_take(self, exported: ExportFunction) -> None:
        model = onnx.load(exported("state_ms") / "onnxruntime" / "model.onnx", load_external_data=False)
        memories = [value.name for value in model.graph.input if value.name.endswith(".C")]
        branches = [node for node in model.graph.node if node.op_type == "If"]
        assert len(branches) == len(memories) > 0
        for memory, branch in zip(memories, branches, strict=True):
            assert [node.op_type for node in model.graph.node if memory in node.input] == ["MatMul"]
            inside = {a.name: [(n.op_type, memory in n.input) for n in a.g.node] for a in branch.attribute}
            assert inside["then_branch"] == [("Mul", True), ("Where", False)]
            assert inside["else_branch"] == [("Mul", True)]

    def test_a_step_reads_a_matrix_of_8_bit_codes_once(self, exported: ExportFunction) -> None:
        options = ("--task", "metaworld/reach-v2", "--precision", "int8")
        path = exported("state_m", targets=("onnxruntime",), options=options)
        model = onnx.load(path / "onnxruntime" / "model.onnx", load_external_data=False)
        products = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
        assert len(products) == len(Bundle.open(path).manifest.quantization.matrices) > 0  # type: ignore[union-attr]

    def test_a_large_memory_is_read_token_by_token_with_the_same_result(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(queries, "SMALLEST_WIDTH", 1)
        path, options = tmp_path / "a.lram", ExportOptions(report=False, reference_steps=8)
        bundle = export_bundle(load_checkpoint(STATE_M), resolve_task("metaworld/reach-v2"), path, options)
        model = onnx.load(path / "onnxruntime" / "model.onnx", load_external_data=False)
        memories = {value.name for value in model.graph.input if value.name.endswith(".C")}
        readers = [node.op_type for node in model.graph.node if memories & set(node.input)]
        assert readers == ["Unsqueeze"] * len(memories)
        parity = bundle.artifact("onnxruntime").parity
        assert parity is not None and parity.passed and parity.max_logit_error < 1e-5

    def test_the_image_encoder_is_in_the_graph_and_unused_weights_are_not(self, exported: ExportFunction) -> None:
        image = onnx.load(exported("image_m") / "onnxruntime" / "model.onnx", load_external_data=False)
        state = onnx.load(exported("state_m") / "onnxruntime" / "model.onnx", load_external_data=False)
        count = lambda model, kind: sum(n.op_type == kind for n in model.graph.node)  # noqa: E731
        assert (count(image, "Conv"), count(state, "Conv")) == (15, 0)
        rows = {tuple(t.dims)[-2:] for t in state.graph.initializer if "head" in t.name}
        assert rows & {(4 * 274, 64), (64, 4 * 274)}  # of 8 * 274
        assert not any(204 in t.dims for t in state.graph.initializer)  # 39 of 204 columns are read


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a changed byte": (
        lambda b: flip_byte(b / "onnxruntime" / "model.onnx.data", 1000),
        r"model\.onnx\.data: content differs from the manifest's SHA-256",
    ),
    "a longer file": (
        lambda b: (b / "onnxruntime" / "model.onnx").open("ab").write(b"x"),
        r"model\.onnx: \d+ bytes, the manifest says \d+",
    ),
    "a missing file": (lambda b: (b / "onnxruntime" / "model.onnx").unlink(), r"model\.onnx: missing"),
    "a missing manifest": (lambda b: (b / "manifest.json").unlink(), r"no manifest\.json"),
    "no JSON": (lambda b: (b / "manifest.json").write_text("{"), r"manifest\.json: not JSON"),
    "a newer schema": (
        lambda b: edit_manifest(b, lambda d: d.update(schema_version=8)),
        "schema_version: this bundle has 8, .* reads up to 7; update lram-export",
    ),
    "no schema": (lambda b: edit_manifest(b, lambda d: d.pop("schema_version")), "schema_version: missing"),
    "a path that leaves the bundle": (
        lambda b: edit_manifest(b, lambda d: d["artifacts"][0]["files"][0].update(path="../../secret")),
        r"files\[0\]\.path: '../../secret' leaves the bundle; refused",
    ),
    "an absolute path": (
        lambda b: edit_manifest(b, lambda d: d["reference"].update(path="/etc/passwd")),
        r"reference\.path: '/etc/passwd' leaves the bundle",
    ),
    "a target that is a path": (
        lambda b: edit_manifest(b, lambda d: d["artifacts"][0].update(target="../x")),
        "target: expected a target's name",
    ),
    "another batch size": (
        lambda b: edit_manifest(b, lambda d: d["specification"].update(batch_size=2)),
        r"specification.inputs\[0\].shape: expected rows first, 2",
    ),
    "no artifacts": (lambda b: edit_manifest(b, lambda d: d.update(artifacts=[])), "artifacts: expected at least one"),
    "no files": (
        lambda b: edit_manifest(b, lambda d: d["artifacts"][1].update(files=[])),
        r"artifacts\[1\]\.files: expected files in the folder 'onnxruntime', got none",
    ),
    "a file nobody vouches for": (
        lambda b: edit_manifest(
            b, lambda d: (d["artifacts"][1]["files"].pop(), d["artifacts"][1].update(weight_bytes=1))
        ),
        r"model\.onnx\.data: not listed in the manifest",
    ),
    "a target twice": (
        lambda b: edit_manifest(b, lambda d: d["artifacts"].append(d["artifacts"][0])),
        "artifacts: target 'pytorch' appears twice",
    ),
    "an unknown precision": (
        lambda b: edit_manifest(b, lambda d: d["artifacts"][0].update(precision="int3")),
        "precision: expected one of fp32, .*mixed, got 'int3'",
    ),
    "a proof that is none": (
        lambda b: edit_manifest(b, lambda d: d["artifacts"][0]["parity"].update(max_logit_error="x")),
        "parity.max_logit_error: expected a number from .* got 'x'",
    ),
    "a link to something else": (
        lambda b: link_outside(b / "onnxruntime" / "model.onnx.data").write_bytes(b"not the weights"),
        r"model\.onnx\.data: 15 bytes, .* a link out of the bundle, to .*/outside, which is no copy .* cp -rL",
    ),
    "a link to an altered copy": (
        lambda b: flip_byte(link_outside(b / "onnxruntime" / "model.onnx.data"), 1000),
        r"model\.onnx\.data: content differs .* a link out of the bundle, to .*: cp -rL",
    ),
    "a link to nothing": (
        lambda b: link_outside(b / "onnxruntime" / "model.onnx.data").unlink(),
        r"model\.onnx\.data: missing; .* a link out of the bundle, to .*: cp -rL",
    ),
    "a link to a device": (
        lambda b: relink(b / "onnxruntime" / "model.onnx.data", "/dev/zero"),
        r"model\.onnx\.data: expected a file, got a device; it is a link out of the bundle, to /dev/zero",
    ),
}


def flip_byte(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def link_outside(path: Path) -> Path:
    outside = path.parent.parent.parent / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)
    return outside


def relink(path: Path, to: str) -> None:
    path.unlink()
    path.symlink_to(to)


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGE)
    def test_it_is_found_and_named(self, bundle: Path, damage: str) -> None:
        change, message = DAMAGE[damage]
        open_and_load(bundle)  # guards the guard
        change(bundle)
        with pytest.raises(BundleError, match=message):
            open_and_load(bundle)

    def test_a_changed_recording_is_found(self, bundle: Path) -> None:
        flip_byte(bundle / "reference.npz", 5000)
        with pytest.raises(BundleError, match=r"reference\.npz: content differs"):
            verify_targets(Bundle.open(bundle), ["onnxruntime"], threads=1)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_no_damage_to_the_manifest_is_anything_but_one_line(
        self, exported: ExportFunction, data: st.DataObject
    ) -> None:
        """Any field removed or replaced by any JSON value: understood, or a ValueError of one line."""
        document = json.loads((exported("state_m") / "manifest.json").read_text())
        node: Any = document
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = data.draw(st.sampled_from(keys))
            if not (isinstance(node[key], dict | list) and node[key]) or data.draw(st.booleans()):
                break
            node = node[key]
        if data.draw(st.booleans()):
            del node[key]
        else:
            node[key] = data.draw(
                st.none()
                | st.booleans()
                | st.integers()
                | st.floats()
                | st.text(max_size=5)
                | st.just([])
                | st.just({})
            )
        try:
            read_manifest(json.dumps(document))
        except ValueError as error:
            assert len(str(error).splitlines()) == 1


class TestSurroundings:
    @pytest.mark.parametrize("target", ["onnxruntime", "native", "pytorch"])
    def test_strangers_do_not_stop_a_robot(self, bundle: Path, target: str) -> None:
        """What file managers and editors leave behind is not read."""
        for name in ("._model.onnx", ".DS_Store", "Thumbs.db", "notes.txt", "model.onnx~"):
            (bundle / target / name).write_bytes(b"\0\5\26\7")
        (bundle / target / "old").mkdir()
        (bundle / target / "old" / "model.onnx").write_bytes(b"")
        load_policy(bundle, target).close()

    def test_only_the_targets_own_listed_files_are_read(self, bundle: Path) -> None:
        edit_manifest(bundle, lambda d: (d["artifacts"][0]["files"].pop(), d["artifacts"][0].update(weight_bytes=1)))
        with pytest.raises(BundleError, match=r"pytorch/.*: not listed in the manifest"):
            load_policy(bundle, "pytorch")


class TestAtomicity:
    def test_a_failed_export_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import lram_export.exporters.onnxruntime as exporter

        def broken(*arguments: object, **options: object) -> None:
            raise LramError("disk full")

        monkeypatch.setattr(exporter, "save_onnx", broken)
        with pytest.raises(LramError, match="disk full"):
            export_state_m(tmp_path / "new.lram")
        assert list(tmp_path.iterdir()) == []

    def test_a_target_that_differs_is_never_shipped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The exporter is made to write a slightly wrong head: only the parity check can notice."""
        import lram_export.exporters.onnxruntime as exporter

        build = exporter.build_onnx

        def wrong(policy: Any) -> Any:
            policy.graph.head.bias.data[100] += 1e-3
            return build(policy)

        monkeypatch.setattr(exporter, "build_onnx", wrong)
        with pytest.raises(
            LramError, match=r"onnxruntime: not what the reference model does: largest logit error 0\.001"
        ):
            export_state_m(tmp_path / "new.lram")
        assert list(tmp_path.iterdir()) == []

    def test_an_existing_bundle_survives_a_failed_replacement(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import lram_export.export as export_module

        def interrupted(*arguments: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(export_module, "export_target", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_state_m(bundle, force=True)
        assert [p.name for p in bundle.parent.iterdir()] == [bundle.name]
        open_and_load(bundle)

    def test_force_replaces_a_bundle(self, bundle: Path) -> None:
        before = Bundle.open(bundle).manifest
        export_state_m(bundle, force=True)
        assert Bundle.open(bundle).manifest.task != before.task
        assert [p.name for p in bundle.parent.iterdir()] == [bundle.name]

    def test_force_never_replaces_a_folder_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "home.lram").mkdir()
        (tmp_path / "home.lram" / "thesis.tex").write_text("years of work")
        with pytest.raises(LramError, match="--force replaces only what lram-export wrote"):
            export_state_m(tmp_path / "home.lram", force=True)
        assert (tmp_path / "home.lram" / "thesis.tex").read_text() == "years of work"


def export_state_m(path: Path, force: bool = False) -> None:
    export_bundle(load_checkpoint(STATE_M), resolve_task("metaworld/reach-v2"), path, ExportOptions(force=force))
