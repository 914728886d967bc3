"""Other runtimes that take steps of the same step graph, each behind one interface (`protocol`)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peers.protocol import Peer

NAMES = ("compile", "aotinductor", "executorch", "iree", "mnn")
"""Each is a module of this folder; those that need packages of their own have them in a file beside it, NAME.txt."""


def peer(name: str) -> Peer:
    """One of :data:`NAMES`; nothing of the runtime itself is imported."""
    found: Peer = import_module(f"peers.{name}").PEER
    return found
