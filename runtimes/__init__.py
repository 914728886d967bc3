"""Runtimes: what runs a target's artifact. One module per target, same names as in ``exporters``.

Nothing here imports torch, an exporter or a compiler, except the `pytorch` runtime, which is the reference.
A module has one function::

    def load(artifact: LoadedArtifact, threads: int, spin: bool) -> Runtime: ...

where ``spin`` is whether its threads may keep looking for work after a step, or shall sleep (ignored where there is no
such choice); and, if it needs more than its packages (a driver, a GPU), a second one, which says in a line what is
missing::

    def unavailable(artifact: LoadedArtifact | None = None) -> str | None: ...

``base.py`` is what all of them do alike, ``guard.py`` who may call, ``protocol.py`` what they offer. An export verifies
with the runtime itself, or where it cannot run, or runs only a part of the artifact (``covers``), with what stands in
for it (:data:`STAND_INS`).
"""

from __future__ import annotations

from importlib import import_module

from lram_export.bundle.artifact import LoadedArtifact
from lram_export.errors import TargetNotInstalledError
from lram_export.runtimes.protocol import Runtime, StepOutput
from lram_export.targets.registry import TargetModule, load_target

__all__ = [
    "OPEN_UNCHECKED",
    "RUNTIMES",
    "STAND_INS",
    "LoadedArtifact",
    "Runtime",
    "StepOutput",
    "check_verifiable",
    "load_runtime",
    "load_verifier",
    "unavailable",
]

RUNTIMES = {
    "pytorch": TargetModule("lram_export.runtimes.pytorch", ("torch", "xlstm"), "export"),
    "onnxruntime": TargetModule("lram_export.runtimes.onnxruntime", ("onnxruntime",), "onnxruntime"),
    "openvino": TargetModule("lram_export.runtimes.openvino", ("openvino",), "openvino"),
    "native": TargetModule("lram_export.runtimes.native", ("lram_export._native",), "native", compiled=True),
    "tensorrt": TargetModule(
        "lram_export.runtimes.tensorrt",
        ("tensorrt|tensorrt_rtx", "cuda.bindings"),
        "tensorrt-rtx",
    ),
    "tvm": TargetModule("lram_export.runtimes.tvm", ("tvm", "tvm_ffi"), "tvm"),
}

OPEN_UNCHECKED = frozenset({"native"})
"""Targets that may open files whose hashes are still being compared: their reader takes nothing in a file on trust, and
nothing in it is run. What it opened is thrown away where the hashes differ."""

STAND_INS = {
    "tensorrt": (
        "onnxruntime",
        TargetModule("lram_export.verification.stand_in_tensorrt", ("onnxruntime", "onnx"), "onnxruntime"),
    ),
    "tvm": ("tvm-host", TargetModule("lram_export.verification.stand_in_tvm", ("tvm",), "tvm")),
}
"""Target -> what verifies its artifact at export where the hardware for it is missing, and the module that does."""


def load_runtime(target: str, artifact: LoadedArtifact, threads: int, spin: bool = True) -> Runtime:
    """Load an artifact; raises UsageError for an unknown target, TargetNotInstalledError with the pip command.

    ``spin``: whether threads may keep looking for work after a step, or shall sleep.
    """
    runtime: Runtime = load_target(RUNTIMES, target).load(artifact, threads, spin)
    return runtime


def unavailable(target: str, artifact: LoadedArtifact | None = None) -> str | None:
    """Why a target, or an artifact of it, cannot run here, in one line; None if it can. Never raises."""
    entry = RUNTIMES.get(target)
    if entry is None:
        return f"this lram-export knows no target '{target}'"
    missing = entry.missing()
    if missing is not None and not entry.compiled:
        return f"the package '{missing}' is not installed"
    try:
        check = getattr(entry.load(target), "unavailable", None)
    except TargetNotInstalledError as error:
        return str(error)
    reason: str | None = check(artifact) if check is not None else None
    return reason


def load_verifier(target: str, artifact: LoadedArtifact, threads: int) -> tuple[Runtime, str]:
    """What verifies an artifact here, and its name: the target's own runtime, else its stand-in."""
    check_verifiable(target)
    if target in STAND_INS and not _covers(target, artifact):
        name, entry = STAND_INS[target]
        stand_in: Runtime = import_module(entry.module).load(artifact, threads)
        return stand_in, getattr(stand_in, "verified_as", name)
    return load_runtime(target, artifact, threads), target


def _covers(target: str, artifact: LoadedArtifact) -> bool:
    """Whether a target's own runtime runs everything that is in an artifact; a module may have a say, ``covers``."""
    if unavailable(target, artifact) is not None:
        return False
    covers = getattr(import_module(RUNTIMES[target].module), "covers", None)
    return True if covers is None else bool(covers(artifact))


def check_verifiable(target: str) -> None:
    """Raise UsageError unless artifacts of a target can be verified here: by its own runtime or by its stand-in."""
    if target in STAND_INS and unavailable(target) is not None:
        load_target({target: STAND_INS[target][1]}, target)
    else:
        load_target(RUNTIMES, target)
