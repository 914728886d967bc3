"""Exporter of the target `pytorch` for a module of one's own: its traced step as plain data, see
:mod:`~lram_export.targets.pytorch.program`.

Matrices that the bundle holds quantized are left out: the runtime dequantizes them.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from safetensors.torch import save_file

from lram_export.bundle.identity import IDENTITY_FILE
from lram_export.exporters import ExportedArtifact
from lram_export.lowering import LoweredModule
from lram_export.step_module.tracing import quietly, trace
from lram_export.targets.pytorch.program import PROGRAM_FILE, WEIGHTS_FILE, program_of, weight_of


def export(policy: LoweredModule, directory: Path) -> ExportedArtifact:
    """Write ``program.json``, ``weights.safetensors`` and ``identity.json``.

    Raises:
        LramError: an operator that is not of PyTorch's core set.
    """
    with quietly():
        program, weights = program_of(trace(policy.graph))
    quantized = set() if policy.quantization is None else set(map(weight_of, policy.quantization.matrices))
    files = [directory / name for name in (PROGRAM_FILE, WEIGHTS_FILE, IDENTITY_FILE)]
    files[0].write_text(json.dumps(program.to_json()) + "\n", encoding="utf-8")
    save_file({name: tensor.clone() for name, tensor in weights.items() if name not in quantized}, files[1])
    files[1].chmod(0o644)  # safetensors writes it for the owner alone
    files[2].write_text(json.dumps(policy.metadata(), indent=2) + "\n", encoding="utf-8")
    return ExportedArtifact(tuple(files), {"torch": version("torch")}, policy.weight_bytes, reads_codes=True)
