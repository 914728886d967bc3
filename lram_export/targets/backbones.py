"""Which targets run which backbone: those with kernels of their own need a module per backbone, others none."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from lram_export.errors import UsageError

ANY_BACKBONE = ("pytorch", "onnxruntime", "openvino", "tensorrt")
"""Targets that compile the step graph, whatever is in it."""
OWN_KERNELS = ("native", "tvm")
"""Targets with hand-written kernels: ``exporters/<target>/<backbone>.py`` is how a backbone is packed for them."""


def targets_of(backbone: str) -> tuple[str, ...]:
    """The targets that run a backbone."""
    return (*ANY_BACKBONE, *(target for target in OWN_KERNELS if find_spec(_module(target, backbone)) is not None))


def kernels_of(target: str, backbone: str) -> ModuleType:
    """The module of a target with hand-written kernels that packs a backbone for it.

    Raises:
        UsageError: it has none, with the targets that run the backbone.
    """
    if target not in targets_of(backbone):
        raise UsageError(
            f"target '{target}' has no kernels for backbone '{backbone}'; it runs on {', '.join(targets_of(backbone))}"
        )
    return import_module(_module(target, backbone))


def _module(target: str, backbone: str) -> str:
    return f"lram_export.exporters.{target}.{backbone}"
