"""lram-export: from a trained policy in PyTorch to a verified one on a robot.

Importing this package is cheap: nothing heavier than the standard library is loaded until it is used.
"""

from __future__ import annotations

from lram_export.version import __version__

TYPE_CHECKING = False  # typing itself takes longer to import than all the rest
__all__ = [
    "Bundle",
    "BundleError",
    "ExportOptions",
    "Field",
    "LramError",
    "Policy",
    "RemotePolicy",
    "StepPolicy",
    "__version__",
    "export_bundle",
    "load_policy",
]

if TYPE_CHECKING:
    from typing import Any

    from lram_export.bundle.bundle import Bundle
    from lram_export.errors import BundleError, LramError
    from lram_export.export import ExportOptions, export_bundle
    from lram_export.policy import Policy, load_policy
    from lram_export.serving.client import RemotePolicy
    from lram_export.step_module.policy import Field, StepPolicy

_LAZY = {
    "Bundle": "lram_export.bundle.bundle",
    "BundleError": "lram_export.errors",
    "ExportOptions": "lram_export.export",
    "Field": "lram_export.step_module.policy",
    "LramError": "lram_export.errors",
    "Policy": "lram_export.policy",
    "RemotePolicy": "lram_export.serving.client",
    "StepPolicy": "lram_export.step_module.policy",
    "export_bundle": "lram_export.export",
    "load_policy": "lram_export.policy",
}


def __getattr__(name: str) -> Any:
    """Import public names on first use (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'lram_export' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
