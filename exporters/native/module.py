"""A module of one's own for the target `native`: its traced step as the engine's program.

Unlike the models of this project, whose blocks have kernels of their own, a module is taken apart into the engine's
operations (`lram_export/targets/native/program.py`); those with weights are the same kernels.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lram_export.exporters import ExportedArtifact
from lram_export.exporters.native.program.translation import translate
from lram_export.lowering import LoweredModule
from lram_export.targets.native.format import stored_name
from lram_export.targets.native.interface import interface_tensor
from lram_export.targets.native.program import Program, ProgramHeader, write_program
from lram_export.version import __version__


def export_module(policy: LoweredModule, path: Path) -> ExportedArtifact:
    """Write the program.

    Raises:
        UsageError: an operator that the engine has no kernel for, with the line of the module.
    """
    program = dataclasses.replace(translate(policy), interface=interface_tensor(policy.interface))
    write_program(path, program, header(policy, program))
    tools = {"lram-export": __version__, "format": f"program {program.version}"}
    return ExportedArtifact((path,), tools, max(1, sum(tensor.bytes for tensor in program.tensors)))


def header(policy: LoweredModule, program: Program) -> ProgramHeader:
    """What the file says of itself."""
    return ProgramHeader(policy.spec.batch_size, program.planes, stored_name(policy.name), policy.sha256)


def stored_module_bytes(policy: LoweredModule) -> dict[str, int]:
    """Bytes of each large matrix in the file, see :func:`lram_export.exporters.stored_bytes`."""
    found = dict.fromkeys(policy.matrix_names(), 0)
    for tensor in translate(policy).tensors:
        if tensor.matrix is not None:
            found[tensor.matrix] += tensor.bytes
    return found
