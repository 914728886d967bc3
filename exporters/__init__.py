"""Exporters: what writes a target's artifact. One module per target, same names as in ``runtimes``.

A module has one function::

    def export(policy: LoweredPolicy, directory: Path) -> ExportedArtifact: ...

It writes its files into ``directory`` (empty, inside the bundle) and returns what the manifest records.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lram_export.registry import TargetModule, load_target

if TYPE_CHECKING:
    from lram_export.lowering import LoweredPolicy


@dataclass(frozen=True)
class ExportedArtifact:
    """What an exporter wrote: its files, the versions of the tools, where it runs, bytes of weights a step reads."""

    files: tuple[Path, ...]
    tools: dict[str, str]
    weight_bytes: int
    precision: str = "fp32"
    platform: str = "any"


EXPORTERS = {
    "pytorch": TargetModule("lram_export.exporters.pytorch", ("torch", "safetensors"), "export"),
    "onnxruntime": TargetModule("lram_export.exporters.onnxruntime", ("torch", "onnx", "onnxscript"), "export"),
    "openvino": TargetModule(
        "lram_export.exporters.openvino", ("torch", "onnx", "onnxscript", "openvino"), "export,openvino"
    ),
}


def export_target(target: str, policy: LoweredPolicy, directory: Path) -> ExportedArtifact:
    """Write one target's artifact; raises UsageError or TargetNotInstalledError before anything is written."""
    artifact: ExportedArtifact = load_target(EXPORTERS, target).export(policy, directory)
    return artifact
