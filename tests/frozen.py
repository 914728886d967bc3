"""What exports write, as hashes: a change that is meant to alter nothing leaves all of them equal.

    python -m tests.frozen write HASHES.json     before the change
    python -m tests.frozen compare HASHES.json   after it: names every file that differs, and exits with 1

Both have to run on one machine with the same packages: libraries compile and sum differently elsewhere. Exported are
the golden checkpoints at the precisions with layouts of their own and a preset with random weights, for every target
(typed ONNX stands for TensorRT); every file counts, the manifest without its date and what depends on the clock.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from lram_export.targets.backbones import targets_of
from tests.conftest import GOLDEN_NAMES, load_golden, succeed

TARGETS = ("pytorch", "onnxruntime", "openvino", "native", "tvm", "tensorrt")
PRECISIONS = ("fp32", "fp16", "int8", "int8g", "int4")
WITHOUT = {("native", "fp16"), ("tensorrt", "int8g")}
PRESET = "16m"
PRESET_TASK = ("--task", "metaworld/reach-v2", "--batch", "1")


def exports(folder: Path) -> dict[str, str]:
    """Export everything into ``folder``; file -> SHA-256, of all files of all bundles."""
    found: dict[str, str] = {}
    preset = folder / "16m"
    succeed("new", "--preset", PRESET, "-o", preset)
    goldens = [load_golden(name) for name in GOLDEN_NAMES]
    jobs = [
        (golden.name, precision, golden.checkpoint, (*golden.task_options, "--batch", "2"), golden.backbone)
        for golden in goldens
        for precision in PRECISIONS
    ] + [("16m", precision, preset, PRESET_TASK, "xlstm") for precision in ("fp32", "int8")]
    for name, precision, checkpoint, task, backbone in jobs:
        bundle = folder / f"{name}-{precision}.lram"
        able = [t for t in TARGETS if t in targets_of(backbone) and (t, precision) not in WITHOUT]
        targets = [part for target in able for part in ("--target", target)]
        options = ["--precision", precision, "--device", "agx-orin", "--no-report", *task]
        succeed("export", checkpoint, "-o", bundle, *targets, *options)
        for file in sorted(path for path in bundle.rglob("*") if path.is_file()):
            found[f"{bundle.name}/{file.relative_to(bundle)}"] = digest(file)
        print(bundle.name, file=sys.stderr, flush=True)
    return found


def digest(file: Path) -> str:
    """SHA-256 of a file; of a manifest without what differs from one export to the next."""
    content = file.read_bytes()
    if file.name == "manifest.json":
        content = json.dumps(without(json.loads(content), {"created"}), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def without(value: Any, keys: set[str]) -> Any:
    """A JSON value without some keys, at every depth."""
    if isinstance(value, dict):
        return {key: without(item, keys) for key, item in value.items() if key not in keys}
    return [without(item, keys) for item in value] if isinstance(value, list) else value


def main(command: str, hashes: Path) -> int:
    """Write the hashes, or compare with them; returns the exit code."""
    with tempfile.TemporaryDirectory() as temporary:
        found = exports(Path(temporary))
    if command == "write":
        hashes.write_text(json.dumps(found, indent=1), encoding="utf-8")
        return 0
    expected: dict[str, str] = json.loads(hashes.read_text(encoding="utf-8"))
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    print("\n".join(different) or f"{len(found)} files, all as they were")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
