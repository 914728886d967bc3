"""Our own targets of a bundle, timed as the peers are: steps of the runtime, below the step API."""

from __future__ import annotations

from pathlib import Path

from lram_export.export import ExportOptions, TargetFailure, export_bundle
from lram_export.lowering.model import LoweredModel
from lram_export.policy import load_policy
from lram_export.quantization.quantize import QuantizationOptions
from lram_export.runtimes.protocol import Runtime

TARGETS = ("native", "tvm", "onnxruntime", "openvino")
PACKAGES = {"native": "lram-export", "tvm": "apache-tvm", "onnxruntime": "onnxruntime", "openvino": "openvino"}
HOW = {"fp32": "float32", "int8": "this project's int8, the same codes on all targets"}
RECORDED_STEPS = 4
"""In the bundle, which is compared with the recorded steps of all contenders anyway."""


def build(policy: LoweredModel, precision: str, targets: tuple[str, ...], bundle: Path) -> dict[str, str]:
    """Export a verified bundle; returns why targets are not in it."""
    failures: dict[str, TargetFailure] = {}
    options = ExportOptions(
        targets=targets,
        reference_steps=RECORDED_STEPS,
        quantization=QuantizationOptions(precision),
        report=False,
    )
    export_bundle(policy.checkpoint, policy.task, bundle, options, failures=failures)
    return {target: failure.reason for target, failure in failures.items()}


def load(bundle: Path, target: str, threads: int) -> Runtime:
    """One of the bundle's targets, its threads ready for the next step at once."""
    return load_policy(bundle, target, threads=threads, spin=True).runtime
