"""Runs an artifact that was compiled for another processor: the same kernels and weights, compiled for this one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory

from lram_export.kernels.tvm import gpu
from lram_export.runtimes.protocol import LoadedArtifact, Runtime
from lram_export.runtimes.tvm import load_library
from lram_export.tvm.build import build_library
from lram_export.tvm.interface import library_file, read_interface
from lram_export.tvm.platforms import PLATFORMS, host_platform
from lram_export.tvm.relax_step import build_step


def load(artifact: LoadedArtifact, threads: int) -> Runtime:
    """The step of a `tvm` artifact on this processor; raises UsageError if TVM cannot compile for it.

    If all its platforms are GPUs, what runs are the kernels for a GPU, their blocks and threads one after the other.
    """
    platform, interface = host_platform(), read_interface(artifact.directory)
    if all(PLATFORMS[name].gpu is not None for name in artifact.platforms if name in PLATFORMS):
        of_gpu = PLATFORMS[artifact.platforms[0]]
        platform = dataclasses.replace(
            platform, name="emulated-gpu", lanes=of_gpu.lanes, memory_columns=of_gpu.memory_columns, dot=None
        )
        with gpu.emulate():
            module = build_step(artifact.config, artifact.task, artifact.spec, interface, platform, kernels=gpu)
    else:
        module = build_step(artifact.config, artifact.task, artifact.spec, interface, platform)
    with TemporaryDirectory() as folder:  # a library that is loaded needs its file no more
        path = Path(folder) / library_file(platform.name)
        build_library(module, platform, path)
        return load_library(artifact, interface, path, platform, threads)
