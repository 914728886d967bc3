"""Exporter of the target `tvm`: one shared library per platform, and the weights, which all of them read.

The step is built as a Relax function from the kernels in `kernels/tvm` (`exporters/tvm/graph.py`; what belongs to a
backbone: `exporters/tvm/<backbone>.py`).
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from lram_export.exporters import ExportedArtifact
from lram_export.exporters.tvm.backbone import TARGET, backbone_kernels
from lram_export.exporters.tvm.build import build_library, check_code_generator, find_compiler, find_nvcc
from lram_export.exporters.tvm.graph import build_step
from lram_export.exporters.tvm.module import export_module
from lram_export.exporters.tvm.weights import pack_weights
from lram_export.lowering import LoweredModel, LoweredModule, matrix_values
from lram_export.progress import SILENT, Progress
from lram_export.targets.limits import TVM_GPU, check
from lram_export.targets.tvm.interface import WEIGHTS_FILE, Interface, library_file, write_weights
from lram_export.targets.tvm.platforms import HOST, find_platform


def export(policy: LoweredModel | LoweredModule, directory: Path, progress: Progress = SILENT) -> ExportedArtifact:
    """Write ``weights.bin``, ``interface.json`` and ``step-PLATFORM.so`` for every platform.

    Raises:
        UsageError: there are no kernels for the model, a platform is unknown, or nothing links for it.
        LramError: a library could not be linked.
    """
    if isinstance(policy, LoweredModule):
        return export_module(policy, directory, progress)
    config, graph = policy.checkpoint.config, policy.graph
    check(TARGET, policy)
    backbone = backbone_kernels(config)
    platforms = list(dict.fromkeys(find_platform(name) for name in policy.platform.processors or (HOST,)))
    for platform in platforms:
        if platform.gpu is not None:
            check(TVM_GPU, policy, platform.name)
        check_code_generator(platform)
        find_compiler(platform)
        if platform.gpu is not None:
            find_nvcc(platform)
    arrays, matrices = pack_weights(policy)
    weights_path = directory / WEIGHTS_FILE
    entries = write_weights(arrays, weights_path)
    del arrays
    columns = {platform.name: platform.memory_columns for platform in platforms}
    epsilons = {"embed": graph.embed_norm.eps, **backbone.epsilons(graph.backbone)}
    interface = Interface(entries, matrices, epsilons, columns, policy.metadata())
    files = [weights_path, interface.write(directory)]
    for platform in platforms:
        with progress.stage(f"compiling for {platform.name}"):
            module = build_step(config, policy.task, policy.spec, interface, platform)
            build_library(module, platform, directory / library_file(platform.name))
        files.append(directory / library_file(platform.name))
    return ExportedArtifact(
        files=tuple(files),
        tools={"apache-tvm": version("apache-tvm"), "lram-export": version("lram-export")},
        weight_bytes=sum(entry.bytes for entry in entries),
        platform=", ".join(columns),
    )


def stored_bytes(policy: LoweredModel | LoweredModule) -> dict[str, int]:
    """Bytes of each large matrix in ``weights.bin``, see :func:`lram_export.exporters.stored_bytes`."""
    if isinstance(policy, LoweredModule):
        return {name: matrix_values(policy, name).nbytes for name in policy.matrix_names()}
    check(TARGET, policy)
    arrays, packed = pack_weights(policy)
    image = policy.task.observation == "image"
    names = {
        name: "embed_observation" if image and name.startswith("embed_") else name for name in policy.matrix_names()
    }
    return {name: sum(arrays[a].nbytes for a in packed[stored].arrays) for name, stored in names.items()}
