"""A model's folder in the repository of a server: what it is called, and what it is made of."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lram_export.bundle.bundle import Bundle
from lram_export.errors import UsageError
from lram_export.version import __version__

MARKER = "lram.json"
"""By which a folder of ours is known; servers do not look at it."""
VERSION = "1"
"""Of the model, which servers number."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def check_name(path: Path) -> str:
    """The name of the folder, which is the model's; raises UsageError for one that has no place in an address."""
    if NAME.fullmatch(path.name) is None:
        raise UsageError(
            f"--output: a server calls the model as its folder, and takes letters, digits, '_', '-' and '.' for it, "
            f"got '{path.name}'"
        )
    return path.name


def write_marker(bundle: Bundle, path: Path, server: str) -> None:
    """Say what a folder is made of."""
    said = {
        "server": server,
        "bundle": bundle.manifest.name,
        "weights": bundle.manifest.source["sha256"],
        "generator": f"lram-export {__version__}",
    }
    (path / MARKER).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
