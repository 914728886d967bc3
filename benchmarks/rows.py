"""What a step of some rows of a large state costs on the target `native`: `python benchmarks/rows.py BUNDLE`.

Steps of 1, 2, 4, ... rows take turns, so that all of them see the same machine. Prints the median time of a step, and
of each row in it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from lram_export.bundle.bundle import Bundle
from lram_export.serving.rows import Arrays, open_rows
from lram_export.spec.tensors import StepSpec
from lram_export.system.machine import cpu_model


def inputs(spec: StepSpec, row: int) -> Arrays:
    """Random observations of a row in the middle of an episode."""
    random = np.random.default_rng(row)
    made = {tensor.name: random.normal(size=tensor.shape).astype(tensor.dtype) for tensor in spec.inputs}
    made["is_first"] = np.zeros(1, np.float32)
    return tuple(made[tensor.name] for tensor in spec.inputs)


def main() -> None:
    """Time them and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    rows = open_rows(Bundle.open(arguments.bundle), "native", arguments.rows, arguments.threads, spin=True)
    given = [inputs(rows.spec, row) for row in range(arguments.rows)]
    counts = [2**power for power in range(arguments.rows.bit_length()) if 2**power <= arguments.rows]
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for turn in range(arguments.rounds):
        for count in counts:
            chosen = [(turn * count + i) % arguments.rows for i in range(count)]
            began = time.perf_counter()
            rows.step(chosen, [given[row] for row in chosen])
            seconds[count].append(time.perf_counter() - began)
    rows.close()
    print(f"{cpu_model()}, {arguments.bundle}, {arguments.rows} rows, {arguments.threads} threads")
    for count in counts:
        step = 1e3 * float(np.median(seconds[count]))
        print(f"{count:5} rows  {step:8.2f} ms  {step / count:8.3f} ms per row")


if __name__ == "__main__":
    main()
