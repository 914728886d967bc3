"""Which TensorRT is here: the full library (`tensorrt`, as JetPack has it) or TensorRT for RTX (`tensorrt_rtx`)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from lram_export.errors import TargetNotInstalledError, UsageError
from lram_export.targets.tensorrt.cuda import Gpu

TENSORRT, RTX = "tensorrt", "tensorrt_rtx"
OLDEST = (10, 0)
"""First version with strongly typed networks as this project writes them and with 64-bit integers."""

PORTABLE = ("8.6", "8.9", "12.0")
"""Compute capabilities that one engine of TensorRT for RTX serves unless told otherwise (its support matrix)."""


@dataclass(frozen=True)
class Toolkit:
    """An imported TensorRT: the module, its package's name and version."""

    module: Any
    name: str
    version: str

    @property
    def label(self) -> str:
        """How people call it: ``TensorRT 10.3.0``."""
        return f"{'TensorRT' if self.name == TENSORRT else 'TensorRT for RTX'} {self.version}"

    @property
    def builds_without_gpu(self) -> bool:
        """Whether engines are built for GPUs that are not here."""
        return self.name == RTX

    @property
    def capabilities(self) -> list[str]:
        """Compute capabilities that TensorRT for RTX builds for and runs on, but 7.5, which cannot run a policy."""
        names = [name for name in self.module.ComputeCapability.__members__ if name.startswith("SM")]
        return [f"{name[2:-1]}.{name[-1]}" for name in names if name != "SM75"]

    @property
    def logger(self) -> Any:
        """The process's logger: ``messages`` are (severity, text), ``reason()`` is the first error's text."""
        return _logger(self.module)


def find_toolkit() -> Toolkit:
    """The full TensorRT where it is installed, else TensorRT for RTX.

    Raises:
        TargetNotInstalledError: neither is installed.
        UsageError: it is too old, or its libraries do not load.
    """
    name = next((package for package in (TENSORRT, RTX) if find_spec(package) is not None), None)
    if name is None:
        raise TargetNotInstalledError.of("tensorrt", f"{TENSORRT} or {RTX}", "tensorrt-rtx")
    try:
        module = import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # bindings without the library beside them
        raise UsageError(f"target 'tensorrt': package '{name}' does not load: {' '.join(str(error).split())}") from None
    if not hasattr(module, "__version__"):
        raise UsageError(f"target 'tensorrt': '{name}' here is some folder, not TensorRT; start from another folder")
    toolkit = Toolkit(module, name, str(module.__version__))
    if name == TENSORRT and _numbers(toolkit.version) < OLDEST:
        raise UsageError(
            f"target 'tensorrt': TensorRT {toolkit.version} is too old, 10.0 or newer is needed; "
            f"JetPack 6.1 brings 10.3"
        )
    return toolkit


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def capability_number(capability: str) -> str:
    """``8.6`` -> ``86``, as NVIDIA writes it in ``SM86``.

    Raises:
        UsageError: not a compute capability.
    """
    major, dot, minor = capability.partition(".")
    if not (dot and major.isdigit() and minor.isdigit()):
        raise UsageError(f"--compute-capability: expected a number such as 8.6, got '{capability}'")
    return major + minor


def refusal(toolkit: Toolkit, gpu: Gpu) -> str | None:
    """Why a toolkit cannot run anything on a GPU, in one line with what can; None if it can."""
    capability = gpu.compute_capability
    if not toolkit.builds_without_gpu or capability in toolkit.capabilities:
        return None
    return (
        f"{toolkit.label} does not run on {gpu.name} (compute capability {capability}; it does on "
        f"{', '.join(toolkit.capabilities)}); install TensorRT itself (package tensorrt), or export --target tvm "
        f"--platform cuda-sm{capability.replace('.', '')}"
    )


@functools.cache
def _logger(trt: Any) -> Any:
    """One for the process: TensorRT keeps the first it is given."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps warnings and errors, for the one line that tells why something failed."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[Any, str]] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                self.messages.append((severity, " ".join(message.split())))

        def reason(self) -> str:
            """The first error: the later ones follow from it."""
            errors = [text for severity, text in self.messages if severity != trt.ILogger.WARNING]
            return errors[0] if errors else "no reason given"

    return Logger()
