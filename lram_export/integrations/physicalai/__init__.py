"""The adapter `lram` of physicalai, Intel's runtime for policies; found by its entry point group.

``package.py`` is the policy of a package by the names that physicalai sends; ``plugin.py`` is what physicalai loads,
and needs it.
"""

from __future__ import annotations

from typing import Protocol

BACKEND = "lram"
"""What physicalai calls it, in its registry and in a package's ``artifacts``."""
EXTENSION = ".lram"
"""How the bundle in a package ends."""


class Registry(Protocol):
    """As much of ``physicalai.inference.adapters.registry.RuntimeAdapterRegistry`` as is used."""

    def register_lazy_module(self, name: str, module_path: str, *, extensions: tuple[str, ...]) -> None:
        """Name the module that registers an adapter when it is imported."""


def register(registry: Registry) -> None:
    """Let physicalai know of the adapter; nothing else is imported until a package asks for it."""
    registry.register_lazy_module(BACKEND, f"{__name__}.plugin", extensions=(EXTENSION,))
