"""What is altered: a small model, exported for every target at every precision, one bundle for each pair."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lram_export.checkpoints.folder import save_checkpoint
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.checkpoints.random import random_checkpoint
from lram_export.episodes.steps import random_steps, save_steps
from lram_export.export import ExportOptions, export_bundle
from lram_export.exporters import EXPORTERS
from lram_export.model.specification import step_spec
from lram_export.quantization.quantize import QuantizationOptions
from lram_export.spec.tasks import TaskSpec
from lram_export.system.files import file_sha256
from tests.models import lram

CONFIG = lram(
    hidden_size=32,
    num_blocks=2,
    num_heads=2,
    inner_size=64,
    slstm_at=(1,),
    slstm_num_heads=2,
    ffn_size=64,
    state_dim=7,
    image_shape=None,
    act_dim=3,
    action_channels=16,
    discrete_actions=4,
)
"""An mLSTM block and an sLSTM block, of the smallest widths that every target takes."""
TASK = TaskSpec("custom", "state", 5, "continuous", 2, 3.0, 2.0)
STEPS = 40
"""Beyond 32 the reward token carries a reward."""
CALIBRATION_STEPS = 96
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8g", "int4", "w8a8")


@dataclass(frozen=True)
class Subject:
    """A bundle of one target; ``recording`` is what it is verified on against its checkpoint, if not random steps."""

    target: str
    precision: str
    path: Path
    checkpoint: Path
    recording: Path | None


def write_subjects(
    folder: Path, precisions: tuple[str, ...] = PRECISIONS, targets: tuple[str, ...] = ()
) -> list[Subject]:
    """Export the model, and take the bundles of several targets apart."""
    checkpoint, recording = folder / "policy", folder / "calibration.npz"
    save_checkpoint(random_checkpoint(CONFIG, folder, seed=3), checkpoint)
    spec = step_spec(CONFIG, TASK)
    save_steps(random_steps(spec, TASK, CALIBRATION_STEPS, seed=4, episode=32), recording)
    subjects = []
    for precision in precisions:
        chosen = [t for t in targets or EXPORTERS if precision in EXPORTERS[t].precisions]
        calibrated = precision == "w8a8"
        quantization = QuantizationOptions(precision, calibration=(recording,) if calibrated else ())
        options = ExportOptions(chosen, reference_steps=STEPS, quantization=quantization, report=False)
        together = folder / f"{precision}.lram"
        export_bundle(load_checkpoint(checkpoint), TASK, together, options)
        for target in chosen:
            path = folder / f"{target}-{precision}.lram"
            shutil.copytree(together, path, ignore=shutil.ignore_patterns(*(t for t in chosen if t != target)))
            document = read(path)
            document["artifacts"] = [entry for entry in document["artifacts"] if entry["target"] == target]
            write(path, document)
            subjects.append(Subject(target, precision, path, checkpoint, recording if calibrated else None))
    return subjects


def read(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle."""
    document: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return document


def write(bundle: Path, document: dict[str, Any]) -> None:
    """Put another manifest into a bundle."""
    (bundle / "manifest.json").write_text(json.dumps(document, indent=2))


def seal(bundle: Path) -> None:
    """Make sizes and hashes those of the files as they are now, also the checksum inside the native artifact."""
    native = bundle / "native" / "model.lrn"
    if native.exists():
        native.write_bytes(with_checksum(native.read_bytes()))
    document = read(bundle)
    files = [document["reference"], *(f for a in document["artifacts"] for f in a["files"])]
    if document["quantization"] is not None:
        files.append(document["quantization"]["file"])
    for entry in files:
        path = bundle / entry["path"]
        entry.update(sha256=file_sha256(path), size=path.stat().st_size)
    write(bundle, document)


def with_checksum(content: bytes) -> bytes:
    """A native artifact whose checksum (sum, and sum weighted by position, of its words) fits its content."""
    start = 40
    if len(content) < start:
        return content
    body = content[start : start + (len(content) - start) // 4 * 4]
    words = struct.unpack(f"<{len(body) // 4}I", body)
    total = sum(words) % 2**64
    weighted = sum(i * word for i, word in enumerate(words, start=1)) % 2**64
    return content[:24] + struct.pack("<QQ", total, weighted) + content[start:]
