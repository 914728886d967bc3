"""The 206m preset on two cores: time, memory and size of its exports. `make test-large` (minutes, 5 GB of disk).

Times are printed, not asserted; memory is asserted, since it does not depend on who else uses the machine.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.large
PEAK_BYTES, INT8_PEAK_BYTES, TENSORRT_PEAK_BYTES = 3.5e9, 4e9, 4e9


def measured(*arguments: str | Path) -> tuple[float, float]:
    """Run a command in a process of its own; returns seconds and peak memory in bytes."""
    return measured_python("from lram_export.cli import main; main()", *arguments)


def measured_python(code: str, *arguments: str | Path) -> tuple[float, float]:
    """The same for Python code."""
    program = [sys.executable, "-c", code, *map(str, arguments)]
    start = time.monotonic()
    process = subprocess.Popen(program)
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert isinstance(usage, resource.struct_rusage)
    return time.monotonic() - start, usage.ru_maxrss * 1024


def test_206m_exports_and_verifies(tmp_path: Path) -> None:
    bundle = tmp_path / "206m.lram"
    measured("new", "--preset", "206m", "-o", tmp_path / "206m")
    seconds, peak = measured("export", tmp_path / "206m", "-o", bundle, "--task", "metaworld/reach-v2")
    print(f"\nexport: {seconds:.0f} s, peak {peak / 1e9:.2f} GB")
    assert peak < PEAK_BYTES
    seconds, peak = measured("verify", bundle)
    print(f"verify: {seconds:.0f} s, peak {peak / 1e9:.2f} GB")
    measured("bench", bundle, "--steps", "200", "--baseline")

    quantized = tmp_path / "int8.lram"
    options = ("--task", "metaworld/reach-v2", "--precision", "int8")
    seconds, peak = measured("export", tmp_path / "206m", "-o", quantized, *options)
    ratio = stored_bytes(quantized) / stored_bytes(bundle)
    print(f"export at int8: {seconds:.0f} s, peak {peak / 1e9:.2f} GB, {ratio:.3f} of the fp32 bundle")
    assert peak < INT8_PEAK_BYTES and ratio <= 0.28


def test_206m_builds_for_tensorrt(tmp_path: Path) -> None:
    """In a process of its own, as `compile` is: the engine for three compute capabilities."""
    bundle = tmp_path / "206m.lram"
    measured("new", "--preset", "206m", "-o", tmp_path / "206m")
    options = ("--task", "metaworld/reach-v2", "--target", "tensorrt", "--device", "agx-orin")
    measured("export", tmp_path / "206m", "-o", bundle, *options)
    seconds, peak = measured_python(
        "from pathlib import Path\n"
        "from lram_export.targets.tensorrt.builder import build_engine\n"
        "from lram_export.targets.tensorrt.recipe import read_recipe\n"
        "from lram_export.targets.tensorrt.toolkit import PORTABLE, find_toolkit\n"
        f"folder = Path({str(bundle / 'tensorrt')!r})\n"
        "model, recipe = folder / 'model.onnx', read_recipe(folder)\n"
        "build_engine(find_toolkit(), model, recipe, rows=1, compute_capabilities=PORTABLE)"
    )
    print(f"TensorRT for RTX: {seconds:.0f} s, peak {peak / 1e9:.2f} GB")
    assert peak < TENSORRT_PEAK_BYTES


def stored_bytes(bundle: Path) -> int:
    """Bytes of all files of a bundle."""
    return sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
