"""Exporter of the target `pytorch`: the checkpoint itself in our own format, for the reference model."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from lram_export.checkpoint import CONFIG_FILE, WEIGHTS_FILE, write_checkpoint
from lram_export.exporters import ExportedArtifact
from lram_export.lowering import LoweredPolicy


def export(policy: LoweredPolicy, directory: Path) -> ExportedArtifact:
    """Write ``config.json`` and ``model.safetensors``, whole: the reference prunes nothing."""
    write_checkpoint(policy.checkpoint, directory)
    tools = {"torch": version("torch"), "xlstm": version("xlstm")}
    files = (directory / CONFIG_FILE, directory / WEIGHTS_FILE)
    return ExportedArtifact(files, tools, policy.weight_bytes)
