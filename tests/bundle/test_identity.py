"""What is stored twice: the manifest against what every artifact says about itself."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from lram_export import Bundle, BundleError, load_policy
from lram_export.model.config import ModelConfig
from lram_export.runtimes import RUNTIMES
from lram_export.system.files import file_sha256
from lram_export.targets.native.format import (
    CHECKSUM_START,
    DIGEST_BYTES,
    HEADER_BYTES,
    NAME_BYTES,
    Header,
    stored_name,
)
from tests.conftest import ExportFunction

EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "target_return": lambda d: d["task"].update(target_return=d["task"]["target_return"] + 1),
    "reward_scale": lambda d: d["task"].update(reward_scale=2 * d["task"]["reward_scale"]),
    "feedback": lambda d: d["task"].update(reward_feedback="observed"),
}
NATIVE: dict[str, Callable[[dict[str, Any]], Any]] = {
    **EDITS,
    "name": lambda d: d.update(name="another"),
    "source_sha256": lambda d: d["source"].update(sha256="0" * 64),
}
"""What the native artifact says as well as all others."""
OTHERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "task.name": lambda d: d["task"].update(name="atari/pong"),
    "limits.observation": lambda d: d["specification"]["inputs"][0].update(limit=1e5),
}


def altered(bundle: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.lram"))
    path = copy / "manifest.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    return copy


def seal(bundle: Path) -> None:
    """Write the sizes and hashes of the files as they are now into the manifest."""
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    for entry in (f for artifact in document["artifacts"] for f in artifact["files"]):
        file = bundle / entry["path"]
        entry.update(sha256=file_sha256(file), size=file.stat().st_size)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("target", list(RUNTIMES))
@pytest.mark.parametrize("edit", {**NATIVE, **OTHERS})
def test_an_edited_manifest_does_not_load(exported: ExportFunction, tmp_path: Path, target: str, edit: str) -> None:
    if target == "native" and edit in OTHERS:
        pytest.skip("its header does not hold it")
    copy = altered(exported("state_ms"), tmp_path, {**NATIVE, **OTHERS}[edit])
    said = f"{edit}: the file says .*, the manifest .*one of them was altered"
    with pytest.raises(BundleError, match=said):
        load_policy(copy, target)


def test_a_model_that_says_nothing_about_itself_does_not_load(exported: ExportFunction, tmp_path: Path) -> None:
    copy = altered(exported("state_ms"), tmp_path, lambda d: None)
    path = copy / "onnxruntime" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    del model.metadata_props[:]
    path.write_bytes(model.SerializeToString())
    seal(copy)
    with pytest.raises(BundleError, match="missing from what the file says about itself"):
        load_policy(copy, "onnxruntime")


def test_a_model_of_another_batch_does_not_load(exported: ExportFunction, tmp_path: Path) -> None:
    """Before a buffer of the manifest's size is given to it."""
    copy = altered(exported("state_ms"), tmp_path, lambda d: None)
    path = copy / "onnxruntime" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 2
    path.write_bytes(model.SerializeToString())
    seal(copy)
    with pytest.raises(BundleError) as caught:
        load_policy(copy, "onnxruntime")
    assert len(str(caught.value).splitlines()) == 1


def test_the_native_header_is_read_as_it_was_written(exported: ExportFunction) -> None:
    path = exported("state_ms")
    task, model = Bundle.open(path).manifest.task, Bundle.open(path).manifest.model
    with (path / "native" / "model.lrn").open("rb") as file:
        start = file.read(HEADER_BYTES)
    header = Header.unpack(start)
    assert (header.batch, header.hidden, header.feedback) == (1, model["backbone"]["hidden_size"], 0)
    assert header.target_return == task.target_return and header.norm_epsilon > 0
    counts = struct.unpack_from("<3I", start, CHECKSUM_START)
    assert header.pack(*counts) == start[CHECKSUM_START:]
    assert counts[1:] == (3, model["backbone"]["num_blocks"])
    manifest = Bundle.open(path).manifest
    assert (header.name, header.source_sha256) == (manifest.name, manifest.source["sha256"])
    native = pytest.importorskip("lram_export._native")
    model = native.Model(str(path / "native" / "model.lrn"), threads=1)
    assert (model.name, model.source_sha256.hex()) == (header.name, header.source_sha256)


def test_a_native_artifact_that_does_not_say_what_it_is_loads(exported: ExportFunction, tmp_path: Path) -> None:
    """One that says something says both."""
    copy = altered(exported("state_ms"), tmp_path, lambda d: None)
    path = copy / "native" / "model.lrn"
    content = path.read_bytes()
    for start, loads in ((HEADER_BYTES - NAME_BYTES - DIGEST_BYTES, True), (HEADER_BYTES - DIGEST_BYTES, False)):
        path.write_bytes(content[:start] + bytes(HEADER_BYTES - start) + content[HEADER_BYTES:])
        seal(copy)
        if loads:
            load_policy(copy, "native").close()
        else:
            with pytest.raises(BundleError, match="source_sha256: the file says"):
                load_policy(copy, "native")


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("reach", "reach"),
        ("x" * 28, "x" * 27),
        ("a" * 26 + "é", "a" * 26),
        ("ab" + 9 * "€", "ab" + 8 * "€"),
        (7 * "🦾", 6 * "🦾"),
        ("a\udcff", "a?"),
    ],
)
def test_a_long_name_is_cut_off_after_a_whole_character(name: str, stored: str) -> None:
    assert stored_name(name) == stored and len(stored.encode()) < NAME_BYTES


def test_the_number_of_parameters_follows_from_the_sizes(exported: ExportFunction) -> None:
    manifest = Bundle.open(exported("state_ms")).manifest
    assert ModelConfig.from_json(dict(manifest.model)).parameters == manifest.parameters
