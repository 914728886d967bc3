"""Bundles that say a rate."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import ExportFunction, load_golden

RATE = 100


def rated(exported: ExportFunction, folder: Path, name: str = "state_ms", target: str = "onnxruntime") -> Path:
    """A golden policy's bundle that was trained at :data:`RATE`; ``folder`` is the session's, for the file it says."""
    said = folder / "rated.yaml"
    said.write_text(f"rate: {RATE}\n", encoding="utf-8")
    options = [*load_golden(name).task_options, "--interface", str(said)]
    return exported(name, targets=(target,), options=options)
