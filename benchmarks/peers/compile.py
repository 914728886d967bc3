"""torch.compile with frozen weights, compiled in the process that steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lram_export.spec.tensors import StepSpec
from peers.protocol import Peer, Session, Source, TorchSession
from peers.torch_programs import HOW, PACKAGES, program

FILE = "program.pt2"


class _Compiled(TorchSession):
    def __init__(self, folder: Path, spec: StepSpec) -> None:
        import torch
        import torch._inductor.config

        settings: Any = torch._inductor.config
        settings.freezing, settings.compile_threads = True, 1  # no processes that stay
        module = torch.export.load(folder / FILE).module()
        self._call = torch.compile(module, fullgraph=True, dynamic=False)
        super().__init__(spec)

    def _run(self, tensors: Sequence[Any]) -> Sequence[Any]:
        import torch

        with torch.no_grad():
            found: Sequence[Any] = self._call(*tensors)
        return found


def build(source: Source, precision: str, folder: Path) -> None:
    """See :class:`~peers.protocol.Peer`."""
    import torch

    torch.export.save(program(source, precision), folder / FILE)


def load(folder: Path, spec: StepSpec, precision: str, threads: int) -> Session:
    """See :class:`~peers.protocol.Peer`."""
    import torch
    import torchao  # noqa: F401  the operators of its codes, which a saved program calls by name

    torch.set_num_threads(threads)
    return _Compiled(folder, spec)


PEER = Peer(
    title="torch.compile",
    packages=PACKAGES,
    how=HOW,
    build=build,
    load=load,
)
