"""IREE: its compiler for this processor, weights in a file of their own, two workers of its task system."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lram_export.errors import LramError
from lram_export.spec.tensors import StepSpec
from peers.protocol import Array, Peer, Session, Source

GRAPH, CODE, WEIGHTS, SCOPE = "model.mlir", "model.vmfb", "model.irpa", "model"
STACK = 1 << 20
"""Bytes of stack of a worker; the default is an eighth."""


class _Module(Session):
    def __init__(self, folder: Path, spec: StepSpec) -> None:
        import iree.runtime as iree

        config = iree.Config("local-task")
        instance = config.vm_instance
        weights = iree.ParameterIndex()
        weights.load(str(folder / WEIGHTS))
        parameters = iree.create_io_parameters_module(instance, weights.create_provider(scope=SCOPE))
        code = iree.VmModule.mmap(instance, str(folder / CODE))
        names = [name for name in code.function_names if not name.startswith("_") and not name.endswith("$async")]
        self._call = iree.load_vm_modules(parameters, code, config=config)[-1][names[0]]
        super().__init__(spec)

    def _run(self, tensors: Sequence[Any]) -> Sequence[Any]:
        found: Sequence[Any] = self._call(*tensors)
        return found

    def _tensor(self, array: Array) -> Array:
        return np.ascontiguousarray(array)

    def _array(self, tensor: Any) -> Array:
        found: Array = tensor if isinstance(tensor, np.ndarray) else tensor.to_host()
        return found


def build(source: Source, precision: str, folder: Path) -> None:
    """See :class:`~peers.protocol.Peer`."""
    graph = folder / GRAPH
    weights = ["--externalize-params", "--save-params", "--params-scope", SCOPE]
    _run("iree-import-onnx", source.onnx, "-o", graph, *weights, "--save-params-to", folder / WEIGHTS)
    _run(
        "iree-compile",
        graph,
        "-o",
        folder / CODE,
        "--iree-hal-target-device=local",
        "--iree-hal-local-target-device-backends=llvm-cpu",
        "--iree-llvmcpu-target-cpu=host",
        "--iree-opt-level=O3",
        f"--iree-llvmcpu-stack-allocation-limit={STACK // 2}",  # without it the chunk of the memory is refused
    )


def load(folder: Path, spec: StepSpec, precision: str, threads: int) -> Session:
    """See :class:`~peers.protocol.Peer`."""
    from iree.runtime import flags

    flags.parse_flags(f"--task_topology_group_count={threads}", f"--task_worker_stack_size={STACK}")
    return _Module(folder, spec)


def _run(program: str, *arguments: object) -> None:
    """A program of the environment; raises LramError with the first line that speaks of an error."""
    path = Path(sys.executable).parent / program
    done = subprocess.run([str(path), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise LramError(f"{program}: {next((line for line in said if 'error' in line.lower()), 'failed')[:200]}")


PEER = Peer(
    title="IREE",
    packages=("iree-base-compiler", "iree-base-runtime"),
    how={"fp32": "float32"},
    left_out={"int8": "its compiler has no weight-only or dynamic int8 of its own"},
    build=build,
    load=load,
)
