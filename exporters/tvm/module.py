"""A module of one's own for the target `tvm`: its traced step through TVM's importer of PyTorch's programs.

There are no kernels of this project in it: TVM generates them from the operators, without tuning. That costs speed, not
correctness; `docs/tvm.md` has numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from lram_export.errors import LramError, UsageError, describe
from lram_export.exporters import ExportedArtifact
from lram_export.exporters.tvm.build import check_code_generator, find_compiler, link
from lram_export.lowering import LoweredModule
from lram_export.progress import Progress
from lram_export.step_module.tracing import quietly, trace
from lram_export.targets.tvm.interface import (
    MODULE_FUNCTION,
    TYPES,
    WEIGHTS_FILE,
    Interface,
    library_file,
    write_weights,
)
from lram_export.targets.tvm.platforms import HOST, TvmPlatform, find_platform, unmet

TARGET = "tvm"


def export_module(policy: LoweredModule, directory: Path, progress: Progress) -> ExportedArtifact:
    """Write ``weights.bin``, ``interface.json`` and ``step-PLATFORM.so`` for every platform.

    Raises:
        UsageError: another precision than `fp32`; a platform that this machine cannot run, and so not verify; an
            operator that TVM does not import.
        LramError: a library could not be linked.
    """
    check_module_precision(policy.precision)
    platforms = list(dict.fromkeys(find_platform(name) for name in policy.platform.processors or (HOST,)))
    for platform in platforms:
        if unmet(platform) is not None:
            raise UsageError(
                f"--platform {platform.name}: a module of one's own is compiled for processors that can verify it here "
                f"({unmet(platform)}); export it on such a machine, or for onnxruntime"
            )
        check_code_generator(platform)
        find_compiler(platform)
    module, weights = imported(policy)
    entries = write_weights(weights, directory / WEIGHTS_FILE)
    interface = Interface(entries, {}, {}, {p.name: p.memory_columns for p in platforms}, policy.metadata())
    files = [directory / WEIGHTS_FILE, interface.write(directory)]
    for platform in platforms:
        files.append(directory / library_file(platform.name))
        with progress.stage(f"compiling for {platform.name}"):
            build_module(module, platform, files[-1])
    return ExportedArtifact(
        files=tuple(files),
        tools={"apache-tvm": version("apache-tvm"), "torch": torch.__version__},
        weight_bytes=max(1, sum(entry.bytes for entry in entries)),
        platform=", ".join(p.name for p in platforms),
    )


def check_module_precision(precision: str) -> None:
    """Raise UsageError for any precision but `fp32`."""
    if precision != "fp32":
        raise UsageError(
            f"target '{TARGET}' runs a module of one's own at fp32 only, not at {precision}; it runs on pytorch, "
            f"onnxruntime, openvino"
        )


def imported(policy: LoweredModule) -> tuple[tvm.IRModule, dict[str, NDArray[Any]]]:
    """The step as a Relax function of inputs, states and weights, and the weights by name."""
    try:
        with quietly(), torch.no_grad():
            program = trace(policy.graph).run_decompositions()
            module = from_exported_program(program, keep_params_as_input=True, custom_convert_map=CONVERTERS)
    except Exception as error:
        raise UsageError(f"target '{TARGET}' cannot import {policy.step_policy.name}: {describe(error)}") from None
    module, parameters = relax.frontend.detach_params(module)
    arrays = [np.ascontiguousarray(parameter.numpy()) for parameter in parameters.get(MODULE_FUNCTION, [])]
    weights = {f"weight.{i}": array for i, array in enumerate(arrays)}
    odd = next((name for name, array in weights.items() if str(array.dtype) not in TYPES), None)
    if odd is not None:
        raise UsageError(f"target '{TARGET}' has no place for {odd}, which is {weights[odd].dtype}")
    return module, weights


def _reduced(operator: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """The converter of a reduction over some dimensions, which TVM's importer has for one dimension only."""

    def convert(node: Any, importer: Any) -> Any:
        x, *rest = node.args
        axes = rest[0] if rest and rest[0] else None
        keep = rest[1] if len(rest) > 1 else node.kwargs.get("keepdim", False)
        return importer.block_builder.emit(operator(importer.env[x], axis=axes, keepdims=keep))

    return convert


def _selected(node: Any, importer: Any) -> Any:
    """One index of a dimension; TVM's own converter reads in front of the tensor where the index is counted from the
    end."""
    x, dimension, index = node.args
    value = importer.env[x]
    shape = node.args[0].meta["val"].shape
    dimension %= len(shape)
    index %= shape[dimension]
    cut = relax.op.strided_slice(value, axes=[dimension], begin=[index], end=[index + 1])
    return importer.block_builder.emit(relax.op.squeeze(importer.block_builder.emit(cut), [dimension]))


CONVERTERS = {
    "amax.default": _reduced(relax.op.max),
    "amin.default": _reduced(relax.op.min),
    "select.int": _selected,
}
"""Operators of PyTorch that TVM's importer does not know, or gets wrong."""


def build_module(module: tvm.IRModule, platform: TvmPlatform, path: Path) -> None:
    """Compile with TVM's own pipeline and link; raises LramError."""
    target = tvm.target.Target(dict(platform.target()))
    try:
        with quietly():
            executable = relax.build(module, target=target, exec_mode="compiled")
    except Exception as error:
        raise LramError(f"{TARGET}: cannot compile the module for {platform.name}: {describe(error)}") from None
    link(executable, platform, path)
