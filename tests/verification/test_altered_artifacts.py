"""Artifacts altered by someone who recomputed their hashes: one line at load or at the first step, never more."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lram_export import load_policy
from lram_export.errors import LramError
from tests.conftest import ExportFunction

FILES = {
    "onnxruntime": ("model.onnx", "model.onnx.data"),
    "openvino": ("model.xml", "model.bin"),
    "tvm": ("interface.json", "weights.bin"),
}


def rewrite(bundle: Path, file: str, content: bytes) -> None:
    """Change a file, and what the manifest says of it."""
    (bundle / file).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    for artifact in manifest["artifacts"]:
        for entry in artifact["files"]:
            if entry["path"] == file:
                entry.update(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("change", ["empty", "half", "noise", "not finite"])
@pytest.mark.parametrize(("target", "file"), [(t, f) for t, files in FILES.items() for f in files])
def test_an_altered_file_is_one_error(
    exported: ExportFunction, tmp_path: Path, target: str, file: str, change: str
) -> None:
    bundle = tmp_path / "altered.lram"
    shutil.copytree(exported("state_ms", "observed", batch=3), bundle)
    content = (bundle / target / file).read_bytes()
    altered = {
        "empty": b"",
        "half": content[: len(content) // 2],
        "noise": np.random.default_rng(0).bytes(len(content)),
        "not finite": np.full(len(content) // 4, np.nan, np.float32).tobytes(),
    }
    rewrite(bundle, f"{target}/{file}", altered[change])
    with pytest.raises(LramError) as caught, load_policy(bundle, target, threads=1) as policy:
        for _ in range(2):
            policy.act(np.zeros((3, 204), np.float32), np.zeros(3))
    assert len(str(caught.value).splitlines()) == 1
