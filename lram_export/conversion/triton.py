"""`triton`: a model's folder for the repository of NVIDIA's Triton Inference Server, for many robots at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lram_export.bundle.bundle import Bundle
from lram_export.conversion.formats import Options, Player, need
from lram_export.conversion.servers.folder import MARKER, check_name, write_marker
from lram_export.errors import UsageError

OPTIONS = ("reward_input", "backend", "target", "max_batch", "sequences", "idle")
PACKAGES = ()
"""What is needed depends on the backend."""


def marker(path: Path) -> str:
    """The file that says what the folder is made of."""
    return MARKER


def write(bundle: Bundle, path: Path, options: Options) -> Callable[[], Player]:
    """See :class:`~lram_export.conversion.formats.Format`."""
    check_name(path)
    write_marker(bundle, path, "triton")
    if options.backend == "python":
        from lram_export.conversion.servers.triton_python import write_python

        return write_python(bundle, path, options)
    if options.target is not None:
        raise UsageError(
            f"--target {options.target}: only with --backend python; the other runs the graph of target onnxruntime"
        )
    need("triton", ("onnx", "onnxruntime"))
    from lram_export.conversion.servers.triton_onnx import write_onnx

    return write_onnx(bundle, path, options)
