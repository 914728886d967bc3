"""`onnx-closed`: one ONNX file that anybody runs, weights inside; see :mod:`lram_export.conversion.closed`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lram_export.bundle.bundle import Bundle
from lram_export.conversion.formats import Options, Player
from lram_export.system.machine import suitable_threads

OPTIONS = ("names", "reward_input")
PACKAGES = ("onnx", "onnxruntime")


def marker(path: Path) -> None:
    """It is a file."""


def write(bundle: Bundle, path: Path, options: Options) -> Callable[[], Player]:
    """See :class:`~lram_export.conversion.formats.Format`."""
    from lram_export.conversion.closed.file import write_closed
    from lram_export.conversion.closed.player import OnnxPlayer

    ports = write_closed(bundle, path, options.names or "state", options.reward_input)
    return lambda: OnnxPlayer(path, ports, suitable_threads(bundle.manifest.parameters, 1))
