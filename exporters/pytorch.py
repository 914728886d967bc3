"""Exporter of the target `pytorch`: the checkpoint itself in our own format, for the reference model; of a module of
one's own its traced step.

Matrices that the bundle holds quantized are left out: the runtime dequantizes them.
"""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path

from lram_export.bundle.identity import IDENTITY_FILE
from lram_export.checkpoints.folder import CONFIG_FILE, WEIGHTS_FILE, write_checkpoint
from lram_export.exporters import ExportedArtifact
from lram_export.exporters.pytorch_program import export as export_program
from lram_export.lowering import LoweredModel, LoweredModule, LoweredPolicy
from lram_export.model.matrices import checkpoint_keys
from lram_export.progress import SILENT, Progress


def export(policy: LoweredPolicy, directory: Path, progress: Progress = SILENT) -> ExportedArtifact:
    """Write ``config.json``, ``model.safetensors`` and ``identity.json``: the reference prunes nothing."""
    if isinstance(policy, LoweredModule):
        return export_program(policy, directory)
    if not isinstance(policy, LoweredModel):
        raise TypeError(type(policy).__name__)
    checkpoint = policy.checkpoint
    if policy.quantization is not None:
        keys = checkpoint_keys(checkpoint.config)
        quantized = {keys[name] for name in policy.quantization.matrices}
        rest = {key: weight for key, weight in checkpoint.weights.items() if key not in quantized}
        checkpoint = dataclasses.replace(checkpoint, weights=rest)
    write_checkpoint(checkpoint, directory)
    tools = {"torch": version("torch"), "xlstm": version("xlstm")}
    (directory / IDENTITY_FILE).write_text(json.dumps(policy.metadata(), indent=2) + "\n", encoding="utf-8")
    files = (directory / CONFIG_FILE, directory / WEIGHTS_FILE, directory / IDENTITY_FILE)
    return ExportedArtifact(files, tools, policy.weight_bytes, reads_codes=True)
