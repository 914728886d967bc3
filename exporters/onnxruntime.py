"""Exporter of the target `onnxruntime`: the step graph as ONNX with external weights.

Quantized matrices stay in the bundle's ``quantized.safetensors``, which lies beside the model: the graph refers to them
there. So the model opens by its path wherever ONNX Runtime is, without lram-export.
"""

from __future__ import annotations

from pathlib import Path

from lram_export.exporters import ExportedArtifact
from lram_export.exporters.onnx.branches import select_in_branches
from lram_export.exporters.onnx.codes import MICROSOFT, quantize_onnx
from lram_export.exporters.onnx.graph import OPSET, build_onnx, save_onnx
from lram_export.exporters.onnx.products import form_of
from lram_export.exporters.onnx.queries import query_token_by_token
from lram_export.lowering import LoweredPolicy
from lram_export.progress import SILENT, Progress


def export(policy: LoweredPolicy, directory: Path, progress: Progress = SILENT) -> ExportedArtifact:
    """Write ``model.onnx`` and ``model.onnx.data``."""
    import onnx
    import onnxscript
    import torch

    model = build_onnx(policy)
    select_in_branches(model, policy.spec)
    query_token_by_token(model, policy.spec)
    if policy.quantization is not None:
        quantize_onnx(model, policy.quantization.matrices, directory, form_of)
    files = save_onnx(model, directory, policy.spec, domains=[] if policy.quantization is None else [MICROSOFT])
    tools = {
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxscript": onnxscript.__version__,
        "opset": str(OPSET),
    }
    return ExportedArtifact(files, tools, policy.weight_bytes, reads_codes=True)
