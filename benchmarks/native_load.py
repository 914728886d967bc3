"""What a restart of the target `native` takes: `python benchmarks/native_load.py BUNDLE [--repeat N] [--program C]`.

Fresh processes take turns: one uses the engine as a C program does (open, create a state, step), one is
`load_policy` and an action, one the same with the files hashed as a whole before anything is opened. Prints the median
of each part in milliseconds, of the wall clock and of the processor (equal with one thread on an idle machine), and the
memory a process grew by from before the load to its peak, next to what it has to hold: the artifact and the state. With
`--program`, the path of the built `examples/c`, also the peak of a process without Python. The page cache is warm after
the first repetition, which does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from lram_export import _native
from lram_export.bundle.bundle import Bundle
from lram_export.policy import Policy, open_runtime
from lram_export.runtimes.native import load
from lram_export.system.machine import cpu_model, peak_memory

MODEL = Path("native") / "model.lrn"
MB = 1e6


class Parts:
    """Wall and processor milliseconds of the parts of a load."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = 1e3 * (time.perf_counter() - wall)
        self.cpu[name] = 1e3 * (time.process_time() - cpu)


def engine(bundle: Path, parts: Parts, threads: int) -> None:
    """Open, create a state and step, through the thinnest layer there is."""
    spec = Bundle.open(bundle).manifest.spec
    inputs = [np.zeros(t.shape, t.dtype) for t in spec.inputs]
    outputs = [np.zeros(t.shape, t.dtype) for t in spec.outputs]
    with parts.part("open, with checksum"):
        model = _native.Model(str(bundle / MODEL), threads=threads)
    with parts.part("create state"):
        state = _native.State(model, spec.batch_size)
    state.bind(inputs, outputs)
    inputs[3][:] = 1
    with parts.part("first step"):
        state.step()
    with parts.part("second step"):
        state.step()


def python(path: Path, parts: Parts, threads: int) -> None:
    """What `load_policy` does, in its parts, then two actions."""
    with parts.part("manifest"):
        bundle = Bundle.open(path)
    with parts.part("hash and open at once"):
        runtime = open_runtime(bundle, "native", threads)
    act(Policy(runtime, bundle.manifest.task), parts)


def in_turn(path: Path, parts: Parts, threads: int) -> None:
    """The same without digests of pieces, and one after the other: the SHA-256 of whole files, then the artifact."""
    with parts.part("manifest"):
        bundle = without_pieces(Bundle.open(path))
    with parts.part("hash"):
        artifact = bundle.load_artifact("native")
    with parts.part("open and create state"):
        runtime = load(artifact, threads)
    act(Policy(runtime, bundle.manifest.task), parts)


def without_pieces(bundle: Bundle) -> Bundle:
    """A bundle whose manifest lists the SHA-256 of whole files alone."""
    artifacts = tuple(
        replace(entry, files=tuple(replace(file, pieces_sha256=None) for file in entry.files))
        for entry in bundle.manifest.artifacts
    )
    return Bundle(bundle.path, replace(bundle.manifest, artifacts=artifacts))


def act(policy: Policy, parts: Parts) -> None:
    """Two actions."""
    observation = np.zeros(policy.spec.inputs[0].shape, policy.spec.inputs[0].dtype)
    with parts.part("first action"):
        policy.act(observation)
    with parts.part("second action"):
        policy.act(observation)


KINDS = {"engine": engine, "python": python, "python, in turn": in_turn}


def child(kind: str, bundle: Path, threads: int) -> None:
    """One measured process: prints a JSON document."""
    parts = Parts()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, imports included, is no longer one
    before = peak_memory() or 0
    KINDS[kind](bundle, parts, threads)
    grew = (peak_memory() or 0) - before
    print(json.dumps({"wall": parts.wall, "cpu": parts.cpu, "grew": grew}))


def run_program(program: Path, bundle: Path) -> int:
    """Peak memory of the C example over three steps."""
    process = subprocess.Popen([program, bundle / MODEL, "3"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert isinstance(usage, resource.struct_rusage)
    return usage.ru_maxrss * 1024


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--program", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.bundle, arguments.threads)
        return
    found: dict[str, list[dict[str, dict[str, float]]]] = {kind: [] for kind in KINDS}
    for repetition in range(arguments.repeat + 1):
        for kind in KINDS:
            line = [sys.executable, __file__, str(arguments.bundle), "--child", kind, "--threads", arguments.threads]
            done = subprocess.run([str(a) for a in line], check=True, capture_output=True, text=True)
            if repetition > 0:
                found[kind].append(json.loads(done.stdout))
    manifest = Bundle.open(arguments.bundle).manifest
    model, state = (arguments.bundle / MODEL).stat().st_size, manifest.spec.state_bytes
    print(f"{cpu_model()}, {_native.chosen_instruction_set()} kernels, {arguments.threads} threads")
    print(f"{arguments.repeat} processes each; milliseconds: median of the wall clock (lowest), of the processor")
    for kind, runs in found.items():
        print(kind)
        names = list(runs[0]["wall"])
        load_parts = names[:-2]
        for name, members in [*((n, [n]) for n in names), ("load", load_parts), ("load, first step", names[:-1])]:
            wall = [sum(run["wall"][m] for m in members) for run in runs]
            cpu = [sum(run["cpu"][m] for m in members) for run in runs]
            print(f"  {name:24}{statistics.median(wall):8.1f} ({min(wall):.1f}){statistics.median(cpu):8.1f}")
        grew = max(float(run["grew"]) for run in runs)  # type: ignore[arg-type]
        print(f"  memory: grew by {grew / MB:.1f} MB")
    print(f"model {model / MB:.1f} MB + state {state / MB:.1f} MB = {(model + state) / MB:.1f} MB")
    if arguments.program:
        print(f"peak of {arguments.program.name}: {run_program(arguments.program, arguments.bundle) / MB:.1f} MB")


if __name__ == "__main__":
    main()
