"""Exporters: what writes a target's artifact. One module per target, same names as in ``runtimes``.

A module has one function::

    def export(policy: LoweredPolicy, directory: Path, progress: Progress) -> ExportedArtifact: ...

It writes its files into ``directory`` (empty, inside the bundle), tells ``progress`` about work that takes long, and
returns what the manifest records. A module that brings matrices into a layout of its own has a second one, see
:func:`stored_bytes`::

    def stored_bytes(policy: LoweredPolicy) -> dict[str, int]: ...
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lram_export.errors import UsageError
from lram_export.progress import SILENT, Progress
from lram_export.spec.precision import MIXED, PRECISIONS
from lram_export.targets.limits import COLUMNS, TVM_GPU, Asked, refusal
from lram_export.targets.registry import TargetModule, load_target

if TYPE_CHECKING:
    from lram_export.lowering import LoweredPolicy
    from lram_export.model.config import ModelConfig


@dataclass(frozen=True)
class ExportedArtifact:
    """What an exporter wrote: its files, the versions of the tools, where it runs, bytes of weights a step reads,
    whether it needs the bundle's file of quantized matrices."""

    files: tuple[Path, ...]
    tools: dict[str, str]
    weight_bytes: int
    platform: str = "any"
    reads_codes: bool = False


ALL_PRECISIONS = (*PRECISIONS, MIXED)

EXPORTERS = {
    "pytorch": TargetModule("lram_export.exporters.pytorch", ("torch", "safetensors"), "export", ALL_PRECISIONS),
    "onnxruntime": TargetModule(
        "lram_export.exporters.onnxruntime", ("torch", "onnx", "onnxscript"), "export", ALL_PRECISIONS
    ),
    "openvino": TargetModule(
        "lram_export.exporters.openvino",
        ("torch", "onnx", "onnxscript", "openvino"),
        "export,openvino",
        ("fp32", "fp16", "bf16", "int8", "int8g", "int4", MIXED),
    ),
    "native": TargetModule(
        "lram_export.exporters.native.exporter", ("torch",), "export", ("fp32", "int8", "int8g", "int4", "w8a8", MIXED)
    ),
    "tensorrt": TargetModule(
        "lram_export.exporters.tensorrt.exporter",
        ("torch", "onnx", "onnxscript"),
        "export",
        ("fp32", "fp16", "bf16", "int8", "int4", MIXED),
    ),
    "tvm": TargetModule(
        "lram_export.exporters.tvm.exporter",
        ("torch", "tvm"),
        "export,tvm",
        ("fp32", "fp16", "bf16", "int8", "int8g", "int4", MIXED),
    ),
}


def check_precision(target: str, precision: str) -> None:
    """Raise UsageError, with the table of what every target can run, unless the target can run the precision."""
    if precision not in EXPORTERS[target].precisions:
        table = "; ".join(f"{name}: {', '.join(entry.precisions)}" for name, entry in EXPORTERS.items())
        raise UsageError(f"--precision: target '{target}' cannot run {precision}. What can: {table}")


@dataclass(frozen=True)
class Support:
    """What a target makes of a model: the precisions that it runs, and why it runs no other or none, if it could."""

    precisions: tuple[str, ...]
    refusal: str | None


def support(config: ModelConfig) -> dict[str, Support]:
    """What every target makes of a model; kernels for GPUs of the target `tvm` by themselves."""
    found = {}
    for name in (*EXPORTERS, TVM_GPU):
        known = EXPORTERS[COLUMNS[name][0] if name in COLUMNS else name].precisions
        refusals = {precision: refusal(name, Asked.at(config, precision)) for precision in known}
        runs = tuple(precision for precision, why in refusals.items() if why is None)
        found[name] = Support(runs, next((why for why in refusals.values() if why is not None), None))
    return found


def export_target(target: str, policy: LoweredPolicy, directory: Path, progress: Progress = SILENT) -> ExportedArtifact:
    """Write one target's artifact; raises UsageError or TargetNotInstalledError before anything is written."""
    artifact: ExportedArtifact = load_target(EXPORTERS, target).export(policy, directory, progress)
    return artifact


def stored_bytes(target: str, policy: LoweredPolicy) -> dict[str, int]:
    """Bytes that a target needs for each large matrix of a policy, by the matrix's name in the step graph.

    An exporter that brings matrices into a layout of its own counts them itself (``stored_bytes`` in its module):
    what it has no kernels for it stores as float32. The others keep codes and scales as the bundle holds them, of the
    formats that they run.
    """
    count = getattr(load_target(EXPORTERS, target), "stored_bytes", None)
    sizes: dict[str, int] = _as_in_the_bundle(target, policy) if count is None else count(policy)
    return sizes


def _as_in_the_bundle(target: str, policy: LoweredPolicy) -> dict[str, int]:
    from lram_export.lowering import matrix_values

    matrices = {} if policy.quantization is None else policy.quantization.matrices
    codes = {name: matrix for name, matrix in matrices.items() if matrix.format in EXPORTERS[target].precisions}
    return {
        name: codes[name].stored_bytes if name in codes else matrix_values(policy, name).nbytes
        for name in policy.matrix_names()
    }
