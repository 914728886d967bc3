"""What exports compute again and again from the same input is computed once.

Half of the time of an export of a small policy goes into translating its graph to ONNX, and most of the rest into
writing and compiling kernels; the suite exports the same few policies hundreds of times. All are functions of their
input alone, and of the code: test processes share graphs and libraries through a folder, which later sessions of the
same code find again, `~/.cache/lram-export/tests` (or under XDG_CACHE_HOME).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import types
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from filelock import FileLock

from lram_export.system.machine import cpu_model

FEW_WINDOWS = 2
"""Of a benchmark: before each of them the machine is probed for a third of a second."""


PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir", "apache-tvm", "numpy")
"""Beside our own, what computes what is kept."""
REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS_KEPT = 4
"""Of as many versions of the code; those that were used longest ago are removed."""


def kept_folder() -> Path:
    """Where what is computed once is kept for this code, these packages, this compiler and this processor."""
    digest = hashlib.sha256()
    for folder in ("lram_export", "exporters", "runtimes", "kernels/tvm", "tests"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            if folder != "tests" or path.name == "once.py":
                digest.update(f"{path.relative_to(REPOSITORY)}\n".encode() + path.read_bytes())
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            digest.update(f"{package} {metadata.version(package)}\n".encode())
    if shutil.which("c++"):
        digest.update(subprocess.run(["c++", "--version"], capture_output=True, check=True).stdout)
    digest.update(cpu_model().encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lram-export" / "tests"
    folder = cache / digest.hexdigest()[:16]
    with FileLock(_made(cache) / "lock"):
        _made(folder).touch()
        for old in sorted((f for f in cache.iterdir() if f.is_dir()), key=lambda f: -f.stat().st_mtime)[FOLDERS_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def measure_briefly(patch: pytest.MonkeyPatch) -> None:
    """What is timed is timed in fewer windows; tests of times themselves take all of them."""
    from lram_export.benchmark import bench

    patch.setattr(bench, "WINDOWS", FEW_WINDOWS)


def copy_or_make(kept: Path, path: Path, make: Callable[[Path], None]) -> None:
    """Bring to ``path`` what ``make`` writes there, which the first process that asks for it keeps for all."""
    with FileLock(kept.with_suffix(".lock")):
        if kept.exists():
            shutil.copy(kept, path)
        else:
            make(path)
            unfinished = kept.with_suffix(f".{os.getpid()}")
            shutil.copy(path, unfinished)
            unfinished.rename(kept)


class _FixedRows(Exception):
    """A translation for one number of rows."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


def translate_once(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """One translation for all step graphs that are the same down to their weights, but for the number of rows: a
    translation is for any, or else it is not kept."""
    import onnx
    import onnx_ir
    from torch.onnx._internal.exporter import _registration

    from lram_export.exporters.onnx import graph

    registry = _registration.ONNXRegistry
    # all of its thousand operators; a translation looks up some, and changes none
    patch.setattr(registry, "from_torchlib", staticmethod(functools.cache(registry.from_torchlib)))
    translate = graph._translate

    @functools.wraps(translate)
    def once(policy: Any) -> Any:
        if policy.task is None:  # of a module of one's own nothing tells what its code does
            return translate(policy)
        interface = dataclasses.replace(policy.interface, rate=None)  # a graph knows of none
        described = (policy.model, policy.task.to_json(), policy.spec.with_batch(1).to_json(), interface.to_json())
        content = hashlib.sha256(json.dumps(described).encode())
        for name, tensor in policy.graph.state_dict().items():
            content.update(name.encode())
            content.update(tensor.contiguous().numpy())

        def make(path: Path) -> None:
            model = translate(policy)
            if isinstance(model.graph.inputs[0].shape[0], int):
                raise _FixedRows(model)
            path.write_bytes(onnx_ir.to_proto(model).SerializeToString())

        with TemporaryDirectory() as own:
            model = Path(own) / "model.onnx"
            try:
                copy_or_make(folder / f"{content.hexdigest()}.onnx", model, make)
            except _FixedRows as fixed:
                return fixed.model
            return onnx_ir.from_proto(onnx.load_model(model))

    patch.setattr(graph, "_translate", once)


def compile_once(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """One library for all modules of kernels that are the same, platform and compiler; in a process one of each
    kernel."""
    try:
        import tvm_ffi
        from tvm.tirx.script.parser import entry

        from lram_export.exporters.tvm import build, exporter, graph
        from lram_export.kernels.tvm.gpu import threads
        from lram_export.verification import stand_in_tvm
    except ImportError:
        return
    compile_library, make_kernel = build.build_library, graph.make_kernel

    def library_once(module: Any, platform: Any, path: Path) -> None:
        # of all that is in it: 64 bits are enough to tell the hundreds of modules of a session apart
        content = tvm_ffi.structural_hash(module)
        compiler = hashlib.sha256(str(build.find_compiler(platform)).encode()).hexdigest()[:8]
        name = f"{content:x}-{platform.name}-{compiler}.so"
        copy_or_make(folder / name, path, lambda path: compile_library(module, platform, path))

    @functools.cache
    def kernel_once(make: Any, sizes: tuple[Any, ...], options: tuple[tuple[str, Any], ...], emulated: bool) -> Any:
        return make_kernel(make, sizes, dict(options))

    def kernel(make: Any, sizes: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return kernel_once(make, sizes, tuple(sorted(options.items())), threads._emulated)

    # every kernel looks at its callers, whose lines of source nobody reads
    quick = types.SimpleNamespace(**{**vars(inspect), "stack": functools.partial(inspect.stack, 0)})
    patch.setattr(entry, "inspect", quick)
    for user in (exporter, stand_in_tvm):
        patch.setattr(user, "build_library", library_once)
    patch.setattr(graph, "make_kernel", kernel)
