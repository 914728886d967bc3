"""MNN: a graph converted from ONNX, on its CPU backend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lram_export.errors import LramError
from lram_export.spec.tensors import StepSpec
from peers.protocol import Array, Peer, Session, Source

FILE = "model.mnn"
BLOCK = 128
"""Inputs of a row that share a scale."""


class _Module(Session):
    def __init__(self, path: Path, spec: StepSpec, threads: int, memory: str) -> None:
        import MNN.expr
        import MNN.nn

        self._expr = MNN.expr
        self._module = MNN.nn.load_module_from_file(
            str(path),
            list(spec.input_names),
            list(spec.output_names),
            shape_mutable=False,
            precision_mode=MNN.expr.PrecisionMode.High,
            memory_mode=getattr(MNN.expr.MemoryMode, memory),
            thread_num=threads,
        )
        super().__init__(spec)

    def _run(self, tensors: Sequence[Any]) -> Sequence[Any]:
        found: Sequence[Any] = self._module.onForward(list(tensors))
        return found

    def _tensor(self, array: Array) -> Any:
        expr = self._expr
        return expr.const(np.ascontiguousarray(array, np.float32), list(array.shape), expr.NCHW, expr.float)

    def _array(self, tensor: Any) -> Array:
        return np.array(tensor.read())


def build(source: Source, precision: str, folder: Path) -> None:
    """See :class:`~peers.protocol.Peer`."""
    import _tools  # the program `mnnconvert` installs packages and tells its makers of every conversion
    import MNN  # noqa: F401 - the converter needs its libraries

    path = folder / FILE
    line = [
        "mnnconvert",
        "-f",
        "ONNX",
        "--modelFile",
        str(source.onnx),
        "--MNNModel",
        str(path),
        "--bizCode",
        "lram",
    ]
    if precision == "int8":
        line += ["--weightQuantBits", "8", "--weightQuantBlock", str(BLOCK)]
    _tools.mnnconvert(line)
    if not path.exists():
        raise LramError("the converter wrote no model")


def load(folder: Path, spec: StepSpec, precision: str, threads: int) -> Session:
    """See :class:`~peers.protocol.Peer`."""
    # with any other, codes become float32 when the model is loaded
    return _Module(folder / FILE, spec, threads, "Normal" if precision == "fp32" else "Low")


PEER = Peer(
    title="MNN",
    packages=("mnn",),
    how={"fp32": "float32", "int8": f"its weight-only int8 in blocks of {BLOCK}, activations rounded as they come"},
    build=build,
    load=load,
)
