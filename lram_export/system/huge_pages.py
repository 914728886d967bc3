"""Huge pages of memory: what this system offers, and what a policy has of them. Linux."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HugePages:
    """What the system says of transparent huge pages.

    ``setting`` is who gets them: ``always``, ``madvise`` (who asks) or ``never``; ``size`` is that of one in bytes.
    ``disabled``: this process gets none, whatever the setting is (prctl PR_SET_THP_DISABLE, which a service may have).
    """

    setting: str
    size: int
    disabled: bool = False

    def __str__(self) -> str:
        """What the target `native` gets, and what to do where that is nothing."""
        if self.setting == "never":
            return (
                "none, the setting is never: steps of large models are slower; as root: "
                "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
            )
        size = f"{self.size / 2**20:g} MiB, {self.setting}"
        if self.disabled:
            return f"none: {size}, but switched off for this process (PR_SET_THP_DISABLE); start it another way"
        return f"{size}: the target native asks for them"


@dataclass(frozen=True)
class MemoryOfPolicy:
    """Bytes of what steps of a policy read, and how many of them lie in huge pages."""

    weights: int
    huge_weights: int
    state: int
    huge_state: int


def huge_pages(root: Path = Path("/")) -> HugePages | None:
    """What this system offers, or None where it has no huge pages. ``root`` is where /proc and /sys are."""
    folder = root / "sys/kernel/mm/transparent_hugepage"
    try:
        chosen = re.search(r"\[(\w+)\]", (folder / "enabled").read_text(encoding="ascii"))
        size = int((folder / "hpage_pmd_size").read_text(encoding="ascii"))
        status = (root / "proc/self/status").read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return None
    return None if chosen is None else HugePages(chosen[1], size, "\nTHP_enabled:\t0" in status)
