"""What the exports of a test process compute again and again from the same input is computed once.

Half of the time of an export of a small policy goes into translating its graph to ONNX, and most of the rest into
compiling kernels; the suite exports the same few policies hundreds of times. Both are functions of their input alone,
which is compared in full.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest


def translate_once(patch: pytest.MonkeyPatch) -> None:
    """One translation for all step graphs that are the same down to their weights."""
    from lram_export.exporters.onnx import graph

    translate, known = graph._translate, dict[str, Any]()

    @functools.wraps(translate)
    def once(policy: Any) -> Any:
        described = (policy.checkpoint.config.to_json(), policy.task.to_json(), policy.spec.to_json())
        content = hashlib.sha256(json.dumps(described).encode())
        for name, tensor in policy.graph.state_dict().items():
            content.update(name.encode())
            content.update(tensor.contiguous().numpy())
        key = content.hexdigest()
        if key not in known:
            known[key] = translate(policy)
        return known[key].clone()

    patch.setattr(graph, "_translate", once)


def compile_once(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """One library for all modules of kernels that are the same, platform and compiler; ``folder`` keeps them."""
    try:
        import tvm_ffi

        from lram_export.exporters.tvm import build, exporter
        from lram_export.verification import stand_in_tvm
    except ImportError:
        return
    compile_library, known = build.build_library, dict[tuple[int, str, str], list[tuple[Any, Path]]]()

    def once(module: Any, platform: Any, path: Path) -> None:
        same = known.setdefault((tvm_ffi.structural_hash(module), platform.name, build.find_compiler(platform)), [])
        for other, library in same:
            if tvm_ffi.structural_equal(module, other):
                shutil.copy(library, path)
                return
        compile_library(module, platform, path)
        kept = folder / f"{len(known)}-{len(same)}.so"
        shutil.copy(path, kept)
        same.append((module, kept))

    for user in (exporter, stand_in_tvm):
        patch.setattr(user, "build_library", once)
