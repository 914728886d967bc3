"""ExecuTorch: a program that XNNPACK computes as far as it can, ExecuTorch's own operators the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lram_export.spec.tensors import StepSpec
from peers.protocol import Peer, Session, Source, TorchSession
from peers.torch_programs import program, with_int8

FILE = "model.pte"


class _Program(TorchSession):
    def __init__(self, path: Path, spec: StepSpec) -> None:
        from executorch.extension.pybindings.portable_lib import _load_for_executorch

        self._module = _load_for_executorch(str(path))
        super().__init__(spec)

    def _run(self, tensors: Sequence[Any]) -> Sequence[Any]:
        found: Sequence[Any] = self._module.forward(tensors)
        return found


def build(source: Source, precision: str, folder: Path) -> None:
    """See :class:`~peers.protocol.Peer`."""
    import torch
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower

    parts = [XnnpackPartitioner()]
    if precision == "int8":
        chosen = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
        exported = with_int8(source, XNNPACKQuantizer().set_module_type(torch.nn.Linear, chosen))
        parts.insert(0, XnnpackPartitioner(config_precisions=ConfigPrecisionType.DYNAMIC_QUANT, per_op_mode=True))
    else:
        exported = program(source, precision)
    to_edge_transform_and_lower(exported, partitioner=parts).to_executorch().save(str(folder / FILE))


def load(folder: Path, spec: StepSpec, precision: str, threads: int) -> Session:
    """See :class:`~peers.protocol.Peer`."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    _unsafe_reset_threadpool(threads)
    return _Program(folder / FILE, spec)


PEER = Peer(
    title="ExecuTorch, XNNPACK",
    packages=("executorch", "torch"),
    how={
        "fp32": "float32",
        "int8": "XNNPACK's int8 of linear layers, one scale per row, activations rounded as they come",
    },
    build=build,
    load=load,
)
