"""Exporter of the target `tvm`: one shared library per platform, and the weights, which all of them read.

The step is built as a Relax function (`exporters/tvm/graph.py`) from the kernels in `kernels/tvm`.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from lram_export.backbones.xlstm.step import MLSTMBlock, SLSTMBlock
from lram_export.errors import UsageError
from lram_export.exporters import ExportedArtifact
from lram_export.exporters.tvm.build import build_library, check_code_generator, find_compiler, find_nvcc
from lram_export.exporters.tvm.graph import build_step
from lram_export.exporters.tvm.weights import pack_weights
from lram_export.kernels.tvm.gpu import THREADS
from lram_export.lowering import LoweredPolicy, matrix_names
from lram_export.progress import SILENT, Progress
from lram_export.targets.layout import check_sums
from lram_export.targets.tvm.interface import WEIGHTS_FILE, Epsilons, Interface, library_file, write_weights
from lram_export.targets.tvm.platforms import HOST, find_platform


def export(policy: LoweredPolicy, directory: Path, progress: Progress = SILENT) -> ExportedArtifact:
    """Write ``weights.bin``, ``interface.json`` and ``step-PLATFORM.so`` for every platform.

    Raises:
        UsageError: the kernels do not know the model's sizes, a platform is unknown, or nothing links for it.
        LramError: a library could not be linked.
    """
    check_sizes(policy)
    platforms = list(dict.fromkeys(find_platform(name) for name in policy.platform.processors or (HOST,)))
    for platform in platforms:
        check_code_generator(platform)
        find_compiler(platform)
        if platform.gpu is not None:
            _check_gpu_sizes(policy, platform.name)
            find_nvcc(platform)
    arrays, matrices = pack_weights(policy)
    weights_path = directory / WEIGHTS_FILE
    entries = write_weights(arrays, weights_path)
    del arrays
    columns = {platform.name: platform.memory_columns for platform in platforms}
    interface = Interface(entries, matrices, _epsilons(policy), columns, policy.metadata())
    files = [weights_path, interface.write(directory)]
    for platform in platforms:
        with progress.stage(f"compiling for {platform.name}"):
            module = build_step(policy.checkpoint.config, policy.task, policy.spec, interface, platform)
            build_library(module, platform, directory / library_file(platform.name))
        files.append(directory / library_file(platform.name))
    return ExportedArtifact(
        files=tuple(files),
        tools={"apache-tvm": version("apache-tvm"), "lram-export": version("lram-export")},
        weight_bytes=sum(entry.bytes for entry in entries),
        platform=", ".join(columns),
    )


def stored_bytes(policy: LoweredPolicy) -> dict[str, int]:
    """Bytes of each large matrix in ``weights.bin``, see :func:`lram_export.exporters.stored_bytes`."""
    check_sizes(policy)
    arrays, packed = pack_weights(policy)
    image = policy.task.observation == "image"
    names = {
        name: "embed_observation" if image and name.startswith("embed_") else name for name in matrix_names(policy)
    }
    return {name: sum(arrays[a].nbytes for a in packed[stored].arrays) for name, stored in names.items()}


def check_sizes(policy: LoweredPolicy) -> None:
    """Raise UsageError for what the kernels do not know: widths, blocks of q, k, v, sums that do not fit 32 bits."""
    config = policy.checkpoint.config
    check_sums("tvm", {} if policy.quantization is None else policy.quantization.matrices)
    widths = {"hidden_size": config.hidden_size, "head width": config.head_dim}
    if config.slstm_at:
        widths["ffn_size"] = config.ffn_size
    for name, width in widths.items():
        if width % 16:
            raise UsageError(f"tvm: {name}: expected a multiple of 16, got {width}; use another target")
    if config.qkv_block_size not in (1, 2, 4):
        raise UsageError(f"tvm: qkv_block_size: expected 1, 2 or 4, got {config.qkv_block_size}; use another target")


def _check_gpu_sizes(policy: LoweredPolicy, platform: str) -> None:
    """Raise UsageError where a kernel would need more threads than a block has."""
    config = policy.checkpoint.config
    needed = {"gates of an mLSTM block times 3": 6 * config.num_heads, "action_dim": policy.task.action_dim or 1}
    for name, count in needed.items():
        if count > THREADS:
            raise UsageError(f"tvm: {platform}: {name}: expected at most {THREADS}, got {count}; use a processor")


def _epsilons(policy: LoweredPolicy) -> Epsilons:
    graph: Any = policy.graph
    blocks = list(graph.blocks)
    mlstm: Any = next((b for b in blocks if isinstance(b, MLSTMBlock)), None)
    slstm: Any = next((b for b in blocks if isinstance(b, SLSTMBlock)), None)
    return Epsilons(
        embed=graph.embed_norm.eps,
        block=graph.post_norm.eps,
        mlstm_heads=mlstm.out_norm.eps if mlstm else 0.0,
        slstm_heads=slstm.out_norm.eps if slstm else 0.0,
    )
