"""Tile sizes of the target `tvm` on this processor: each candidate in `lram_export/targets/tvm/platforms.py`.

    python benchmarks/tvm_tiles.py [--platform x86_64-v4] [--threads 2] [--rounds 30]

Times the kernels that have a choice, with the sizes of the 206m preset, candidates in turns. Every candidate reads
enough copies to come from memory, and once more from the cache. Prints GB/s (weights, or C read and written) by the
median over rounds; the best of a kernel is what belongs into the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from lram_export.system.machine import physical_cores
from lram_export.targets.tvm.platforms import HOST, PLATFORMS, TvmPlatform, find_platform, unmet

os.environ.setdefault("TVM_NUM_THREADS", str(physical_cores()))
os.environ.setdefault("TVM_BIND_THREADS", "0")

import numpy as np
import tvm
from rich.console import Console
from rich.table import Table

from lram_export.backbones.xlstm.config import PRESETS
from lram_export.kernels.tvm.cpu import dense
from lram_export.kernels.tvm.cpu.xlstm import mlstm
from lram_export.targets.layout import TILE

HIDDEN, _ = PRESETS["206m"]
TOKENS, ROWS, HEADS, HEAD_WIDTH, OUTPUTS = 3, 3, 4, HIDDEN // 2, 4 * HIDDEN
MEMORY_COPIES_BYTES = 256 * 2**20
"""Copies of what a kernel reads take so much, well beyond any cache."""


@dataclasses.dataclass
class Candidate:
    """A kernel with one choice of its tile size: its function, and arguments for every copy of what it streams."""

    kernel: str
    choice: str
    bytes: int
    function: Any
    arguments: list[list[Any]]
    seconds: dict[str, list[float]] = dataclasses.field(default_factory=lambda: {"cache": [], "memory": []})

    def measure(self, place: str, calls: int = 8) -> None:
        """Time some calls, over one copy or over all."""
        copies = self.arguments[:1] if place == "cache" else self.arguments
        for arguments in copies[:1]:
            self.function(*arguments)
        start = time.perf_counter()
        for call in range(calls):
            self.function(*copies[call % len(copies)])
        self.seconds[place].append((time.perf_counter() - start) / calls)

    def speed(self, place: str) -> float:
        """GB/s."""
        return self.bytes / statistics.median(self.seconds[place]) / 1e9


def candidates(platform: TvmPlatform) -> Iterator[Candidate]:
    """Every kernel that has a choice, with every choice that the platform's registers allow."""
    lanes = platform.lanes
    for columns in (16, 32, 64, 128):
        if columns >= lanes:
            yield candidate(
                platform,
                "memory",
                f"memory_columns={columns}",
                mlstm.memory(1, TOKENS, HEADS, HEAD_WIDTH, columns, lanes),
                streamed="C",
                passes=2,
            )
    yield candidate(
        platform, "fp32", "no choice", dense.dense_float(ROWS, HIDDEN, OUTPUTS // TILE, 1, "float32", lanes), "weight"
    )
    dot = platform.dot
    if dot is None:
        for name in ("int8", "int8g", "int4"):
            make = getattr(dense, f"dense_{name}_dequantized")
            yield candidate(platform, name, "no choice", make(ROWS, HIDDEN, OUTPUTS // TILE, lanes), "weight")
        return
    options: dict[str, Any] = {"intrinsic": dot.intrinsic, "unsigned": dot.unsigned, "lanes": lanes}
    for outputs in (o for o in (8, 16, 32) if o >= lanes):
        sizes = (ROWS, HIDDEN, OUTPUTS // TILE)
        int8 = dense.dense_int8_dot(*sizes, outputs=outputs, **options)
        yield candidate(platform, "int8", f"outputs={outputs}", int8, "weight")
        for name, make in (("int8g", dense.dense_int8g_dot), ("int4", dense.dense_int4_dot)):
            grouped = make(*sizes, outputs=outputs, **options)
            yield candidate(platform, name, f"grouped_outputs={outputs}", grouped, "weight")


def candidate(
    platform: TvmPlatform, kernel: str, choice: str, function: Any, streamed: str, passes: int = 1
) -> Candidate:
    """Compile a kernel, and make arguments of ones for it."""
    module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
    compiled = tvm.compile(module, target=tvm.target.Target(dict(platform.target())))["kernel"]
    buffers = list(function.params)
    shapes = {b.name: (tuple(int(extent) for extent in b.shape), str(b.dtype)) for b in buffers}
    shape, dtype = shapes[streamed]
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    shared = {name: _ones(*described) for name, described in shapes.items() if name != streamed}
    copies = max(2, -(-MEMORY_COPIES_BYTES // size))
    arguments = [
        [_ones(shape, dtype) if b.name == streamed else shared[b.name] for b in buffers] for _ in range(copies)
    ]
    return Candidate(kernel, choice, size * passes, compiled, arguments)


def _ones(shape: tuple[int, ...], dtype: str) -> Any:
    return tvm.runtime.tensor(np.full(shape, 0.01 if dtype == "float32" else 1, dtype))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", default=HOST, help=f"one of {', '.join(PLATFORMS)}; default: {HOST}")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    platform = find_platform(options.platform)
    reason = unmet(platform)
    if reason is not None:
        parser.error(f"--platform {platform.name}: {reason}")
    configure: Callable[[int, int], None] = tvm.get_global_func("runtime.config_threadpool")
    configure(1, options.threads)
    found = list(candidates(platform))
    for place in ("cache", "memory"):
        for _ in range(options.rounds):
            for each in found:
                each.measure(place)
    table = Table(title=f"{platform.name}, {options.threads} threads, hidden {HIDDEN}: GB/s")
    for column in ("kernel", "choice", "from cache", "from memory"):
        table.add_column(column, justify="left" if column in ("kernel", "choice") else "right")
    for each in sorted(found, key=lambda c: (c.kernel, -c.speed("memory"))):
        table.add_row(each.kernel, each.choice, f"{each.speed('cache'):.1f}", f"{each.speed('memory'):.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
