"""AOTInductor: a shared library that torch compiles ahead of time, with the weights in its package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lram_export.spec.tensors import StepSpec
from peers.protocol import Peer, Session, Source, TorchSession
from peers.torch_programs import HOW, PACKAGES, program

FILE = "model.pt2"


class _Package(TorchSession):
    def __init__(self, package: Path, spec: StepSpec) -> None:
        import torch

        self._call = torch._inductor.aoti_load_package(str(package))
        super().__init__(spec)

    def _run(self, tensors: Sequence[Any]) -> Sequence[Any]:
        found: Sequence[Any] = self._call(*tensors)
        return found


def build(source: Source, precision: str, folder: Path) -> None:
    """See :class:`~peers.protocol.Peer`."""
    import torch
    import torch._inductor.config

    settings: Any = torch._inductor.config
    settings.freezing = True
    settings.compile_threads = 1
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(program(source, precision), package_path=str(folder / FILE))


def load(folder: Path, spec: StepSpec, precision: str, threads: int) -> Session:
    """See :class:`~peers.protocol.Peer`."""
    import torch

    torch.set_num_threads(threads)
    return _Package(folder / FILE, spec)


PEER = Peer(
    title="AOTInductor",
    packages=PACKAGES,
    how=HOW,
    build=build,
    load=load,
)
