"""Runtimes: what runs a target's artifact. One module per target, same names as in ``exporters``.

Nothing here imports torch, an exporter or a compiler, except the `pytorch` runtime, which is the reference.
A module has one function::

    def load(artifact: LoadedArtifact, threads: int) -> Runtime: ...
"""

from __future__ import annotations

from lram_export.registry import TargetModule, load_target
from lram_export.runtimes.protocol import LoadedArtifact, Runtime, StepOutput

__all__ = ["RUNTIMES", "LoadedArtifact", "Runtime", "StepOutput", "load_runtime"]

RUNTIMES = {
    "pytorch": TargetModule("lram_export.runtimes.pytorch", ("torch", "xlstm"), "export"),
    "onnxruntime": TargetModule("lram_export.runtimes.onnxruntime", ("onnxruntime",), "onnxruntime"),
    "openvino": TargetModule("lram_export.runtimes.openvino", ("openvino",), "openvino", reads_quantized=False),
    "native": TargetModule("lram_export.runtimes.native", ("lram_export._native",), "native", reads_quantized=False),
}


def load_runtime(target: str, artifact: LoadedArtifact, threads: int) -> Runtime:
    """Load an artifact; raises UsageError for an unknown target, TargetNotInstalledError with the pip command."""
    runtime: Runtime = load_target(RUNTIMES, target).load(artifact, threads)
    return runtime
