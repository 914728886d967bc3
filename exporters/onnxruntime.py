"""Exporter of the target `onnxruntime`: the step graph as ONNX with external weights."""

from __future__ import annotations

from pathlib import Path

from lram_export.exporters import ExportedArtifact
from lram_export.lowering import LoweredPolicy
from lram_export.onnx_graph import OPSET, build_onnx, save_onnx


def export(policy: LoweredPolicy, directory: Path) -> ExportedArtifact:
    """Write ``model.onnx`` and ``model.onnx.data``."""
    import onnx
    import onnxscript
    import torch

    files = save_onnx(build_onnx(policy), directory, policy.spec)
    tools = {
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxscript": onnxscript.__version__,
        "opset": str(OPSET),
    }
    return ExportedArtifact(files, tools, policy.weight_bytes)
