"""The same step graph on other runtimes, beside ours, in turns: `make peers`.

    python benchmarks/peers.py [--sizes 16m 48m 110m 206m] [--precisions fp32 int8] [--peers iree mnn] [--steps 200]
        [--out FILE] [--page] [--resume]
    python benchmarks/peers.py --draw [--out FILE]

Peers are torch.compile, AOTInductor, ExecuTorch with XNNPACK, IREE and MNN, each a module of `benchmarks/peers`. All
get the step graph of a published size with random weights, at float32, and at int8 in their own way, if they have one
that quantizes weights alone or rounds activations as they come: nobody else's codes, no calibration. Ours are the
targets of a bundle. What is not installed, cannot be built or computes something else is left out, with the reason.

Every contender has a process of its own and as many threads. It replays recorded steps of the float32 reference first:
at float32 it has to hold this project's tolerance, at int8 errors are shown beside the times. Then all take turns in
windows. Where the memory does not hold all at once they come in shifts, each with `native`, and ratios to it are those
of windows of one shift. Timed is a step with everything but the step API: inputs are arrays, outputs are arrays, the
state is the runtime's own tensors, which go from step to step as they are.

The floor is the time of reading a step's bytes at the bandwidth that a probe measures among the windows.

`--page` writes the table and the chart into `docs/results.md`, from everything in FILE. `--resume` keeps what FILE has.
`--draw` does what `--page` does, and measures nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peers_results as shown
import results_page as page
from peers import NAMES, ours, peer
from peers.building import TASK, Builder
from peers.processes import Child
from peers.protocol import versions
from peers.stepping import Contender, Report, Stepper, title
from results import place

from lram_export.backbones.xlstm.config import PRESETS
from lram_export.benchmark.bench import SPARE_CPUS, STEAL_LIMIT
from lram_export.benchmark.probes import ReadBandwidth
from lram_export.checkpoints.random import preset_config
from lram_export.errors import LramError
from lram_export.prediction.sizes import moved_bytes, weight_bytes
from lram_export.spec.tasks import resolve_task
from lram_export.system.files import atomic_file
from lram_export.system.load import LoadWatch, MachineLoad

ROOT = Path(__file__).parent.parent
WINDOWS, WINDOW_SECONDS = 10, 1.5
"""A window ends after this time, however few its steps."""

ANSWER_SECONDS = 300.0
"""Within which whoever is loaded has to take its steps."""

COPIES, BESIDES = 3.0, 0.3e9
"""Bytes of a contender's process at most: so often the float32 weights (some keep what they read beside what they made
of it, and make that first), and the libraries."""

PRECISIONS = ("fp32", "int8")
ANCHOR = "native"

Document = dict[str, Any]


@dataclass
class Case:
    """A size at a precision: who can be timed, and why others cannot."""

    size: str
    precision: str
    folder: Path
    options: argparse.Namespace
    contenders: list[Contender] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    built: dict[str, float] = field(default_factory=dict)
    """Seconds that builds took, the start of their process with them."""

    @property
    def reference(self) -> Path:
        """The recorded steps."""
        return self.folder / "reference.npz"

    @property
    def onnx(self) -> Path:
        """The step graph in ONNX."""
        return self.folder / "onnx"

    def build(self) -> None:
        """Write what all contenders load, each in a process that ends."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._build("reference", "reference", self.reference, self.onnx)
        bundle, targets = self.folder / "bundle.lram", tuple(self.options.targets)
        failures = self._try("ours", "ours", targets, self.precision, bundle)
        for name in targets:
            reason = self.left_out.get("ours") or (failures or {}).get(name)
            self._add(name, bundle, reason)
        self.left_out.pop("ours", None)
        for name in self.options.peers:
            path, reason = self.folder / name, self.options.absent.get(name) or peer(name).left_out.get(self.precision)
            if reason is None:
                self._try(name, "peer", name, self.precision, path, self.onnx)
                reason = self.left_out.get(name)
            self._add(name, path, reason)
        shutil.rmtree(self.onnx)

    def _add(self, name: str, path: Path, reason: str | None) -> None:
        if reason is None:
            self.contenders.append(Contender(name, self.size, self.precision, path))
        else:
            self.leave_out(name, reason)

    def _try(self, name: str, method: str, *arguments: object) -> Any:
        """Build, or leave it out."""
        try:
            return self._build(name, method, *arguments)
        except LramError as error:
            self.left_out[name] = str(error)
            return None

    def _build(self, name: str, method: str, *arguments: object) -> Any:
        say(f"{self.size} {self.precision}: building {title(name) if name in NAMES else name}")
        start = time.perf_counter()
        seconds = self.options.build_seconds
        with Child(self.log(name), Builder, self.size, self.options.threads, seconds=seconds) as builder:
            answer = builder.ask(method, *arguments)
        self.built[name] = time.perf_counter() - start
        return answer

    def log(self, name: str) -> Path:
        """Where a process leaves its words; it stays."""
        path: Path = self.options.out.parent / "logs" / f"{self.size}-{self.precision}-{name}.log"
        path.parent.mkdir(exist_ok=True)
        return path

    def leave_out(self, name: str, reason: str) -> None:
        """Say so at once."""
        self.left_out[name] = reason
        say(f"{self.size} {self.precision}: {title(name)} left out: {reason}")

    def shifts(self) -> Iterator[list[Contender]]:
        """Those who are in memory at once: the anchor, and as many others as fit."""
        weights = weight_bytes(preset_config(self.size), "fp32", resolve_task(TASK))
        many = max(2, int(self.options.memory * 1e9 / (COPIES * weights + BESIDES)))
        return shifts(self.contenders, many)


def shifts(contenders: Sequence[Contender], many: int) -> Iterator[list[Contender]]:
    """All contenders, at most so many at once, the anchor (or else the first) among all of them."""
    if not contenders:
        return
    anchor = next((c for c in contenders if c.name == ANCHOR), contenders[0])
    others = [c for c in contenders if c is not anchor]
    for start in range(0, max(len(others), 1), many - 1):
        yield [anchor, *others[start : start + many - 1]]


@dataclass
class Turns:
    """What a contender measured in a shift: seconds of the steps of every window, and its report, the last thing."""

    contender: Contender
    windows: list[list[float]] = field(default_factory=list)
    report: Report | None = None

    @property
    def row(self) -> Document:
        """Of the report; only of those who came to the end."""
        assert self.report is not None
        return dataclasses.asdict(self.report)


def take_turns(
    case: Case, shift: Sequence[Contender], probe: Child, bandwidths: list[float]
) -> tuple[list[Turns], MachineLoad]:
    """Load all, then window by window; who fails is left out. And what others did meanwhile."""
    options = case.options
    with ExitStack() as stack:
        at_work: dict[Child, Turns] = {}
        for contender in shift:
            say(f"{case.size} {case.precision}: loading {contender.title}")
            made = (Stepper, contender, case.reference, options.threads)
            try:
                child = Child(case.log(contender.name), *made, seconds=ANSWER_SECONDS)
            except LramError as error:
                case.leave_out(contender.name, str(error))
            else:
                at_work[stack.enter_context(child)] = Turns(contender)
        say(f"{case.size} {case.precision}: {len(at_work)} take turns")
        watch = LoadWatch([probe.pid, *(child.pid for child in at_work)])
        for steps in split(options.steps, WINDOWS):
            bandwidths.append(probe.ask("measure"))
            ask_all(case, at_work, "window", steps, WINDOW_SECONDS)
        load = watch.stop()
        ask_all(case, at_work, "finish")
        return list(at_work.values()), load


def ask_all(case: Case, at_work: dict[Child, Turns], method: str, *arguments: object) -> None:
    """One after the other; who fails leaves."""
    for child, turns in list(at_work.items()):
        try:
            answer = child.ask(method, *arguments)
        except LramError as error:
            case.leave_out(turns.contender.name, str(error))
            del at_work[child]
            continue
        if method == "window":
            turns.windows.append(answer)
        else:
            turns.report = answer


def split(steps: int, parts: int) -> list[int]:
    """So many steps in so many windows, none of them empty."""
    return [len(part) for part in np.array_split(np.arange(steps), min(parts, steps))]


def measure(case: Case) -> Document:
    """Build and time everybody; numbers and reasons."""
    case.build()
    bandwidths: list[float] = []
    found, doubtful = list[list[Turns]](), set[str]()
    with Child(case.log("probe"), ReadBandwidth, case.options.threads, seconds=ANSWER_SECONDS) as probe:
        for shift in case.shifts():
            turns, load = take_turns(case, shift, probe, bandwidths)
            found.append(turns)
            doubtful.update(doubts(load, case.options.threads))
    moved = moved_bytes(preset_config(case.size), case.precision, resolve_task(TASK))
    floor = 1e3 * moved / float(np.median(bandwidths)) if bandwidths else None
    return {
        "size": case.size,
        "precision": case.precision,
        "bandwidth": float(np.median(bandwidths)) if bandwidths else None,
        "bytes": moved,
        "floor_ms": floor,
        "results": results(case, found),
        "left_out": {title(name): reason for name, reason in case.left_out.items()},
        "warnings": sorted(doubtful),
    }


def results(case: Case, found: Sequence[Sequence[Turns]]) -> list[Document]:
    """A row for every contender; the anchor's is of all its shifts."""
    rows: dict[str, Document] = {}
    for shift in found:
        anchor = next((turns for turns in shift if turns.contender.name == ANCHOR), None)
        for turns in shift:
            name, windows = turns.contender.name, turns.windows
            if name in rows:
                windows = [*rows[name].pop("windows"), *windows]
            rows[name] = {
                "contender": name,
                "title": turns.contender.title,
                "build_seconds": case.built[name if name in NAMES else "ours"],
                "against_native": None if anchor is None else ratio(turns.windows, anchor.windows),
                **turns.row,
                "windows": windows,
            }
    return [{**row, **times(row.pop("windows"))} for row in rows.values()]


def ratio(windows: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> float:
    """How many times as long as another one's steps, the median over windows that were beside one another."""
    pairs = zip(windows, others, strict=True)
    return float(np.median([np.median(own) / np.median(other) for own, other in pairs]))


def times(windows: Sequence[Sequence[float]]) -> Document:
    """What windows of seconds say, in milliseconds."""
    steps = 1e3 * np.concatenate(windows)
    p50, p99 = np.percentile(steps, [50, 99])
    medians = [1e3 * float(np.median(window)) for window in windows]
    return {"p50_ms": float(p50), "p99_ms": float(p99), "steps": len(steps), "window_ms": medians}


def doubts(load: MachineLoad, threads: int) -> list[str]:
    """Why numbers are not to be relied on, a line each."""
    found = []
    if load.others is not None and load.others > load.cpus - threads + SPARE_CPUS:
        found.append(f"others used {load.others:.1f} of {load.cpus} CPUs")
    if load.steal is not None and load.steal > STEAL_LIMIT * load.cpus:
        found.append(f"the host gave {load.steal:.1f} of {load.cpus} CPUs to other machines")
    return found


def say(text: str) -> None:
    """Where a long run is."""
    print(text, file=sys.stderr, flush=True)


def installed(names: Sequence[str], targets: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Versions of what takes part, and why peers cannot."""
    found, absent = place()["versions"], dict[str, str]()
    kept = {"python", "torch", "lram-export", "numpy", "commit", *(ours.PACKAGES[target] for target in targets)}
    found = {name: number for name, number in found.items() if name in kept}
    for name in names:
        try:
            found = {**found, **versions(peer(name))}
        except LramError as error:
            absent[name] = str(error)
    return found, absent


def start_document(options: argparse.Namespace, used: dict[str, str]) -> Document:
    """What a run begins with: nothing, or the numbers of one that ended early on this machine with these versions."""
    said = {name: getattr(options, name) for name in ("steps", "threads", "targets", "peers")}
    here = {**place(), "versions": used, "options": said}
    if not options.resume or not options.out.exists():
        return {"where": here, "measured": []}
    document: Document = json.loads(options.out.read_text(encoding="utf-8"))
    for what in ("machine", "versions", "options"):
        if document["where"][what] != here[what]:
            raise SystemExit(f"error: {options.out}: measured with other {what}; without --resume all is measured anew")
    return document


def write_page(document: Document) -> None:
    """The section and its chart."""
    shown.draw(document, page.PAGE.parent / shown.CHART)
    text = page.replace_section(page.PAGE.read_text(encoding="utf-8"), "peers", shown.lines(document))
    with atomic_file(page.PAGE, force=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    say(f"{page.PAGE}: peers written")


def whole(most: int) -> Any:
    """A parser of whole numbers from 1 to ``most``."""

    def parse(text: str) -> int:
        number = int(text)
        if not 1 <= number <= most:
            raise argparse.ArgumentTypeError(f"expected 1 to {most:,}, got {text}")
        return number

    return parse


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=PRESETS, default=["16m", "206m"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--peers", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--targets", nargs="*", choices=ours.TARGETS, default=list(ours.TARGETS), help="of ours")
    parser.add_argument("--steps", type=whole(100_000), default=200, help="timed of each, in windows")
    parser.add_argument("--threads", type=whole(256), default=2, help="of each")
    parser.add_argument("--memory", type=whole(1000), default=12, help="gigabytes that contenders fill at once")
    parser.add_argument("--build-seconds", type=whole(86_400), default=300, help="after which a build is given up")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "peers" / "results.json", help="numbers")
    parser.add_argument("--page", action="store_true", help="write docs/results.md and its chart")
    parser.add_argument("--draw", action="store_true", help="write the page from what --out has, and measure nothing")
    parser.add_argument("--resume", action="store_true", help="go on: keep what --out has")
    return parser.parse_args()


def main() -> None:
    """Measure, and write numbers and page."""
    options = parse()
    if options.draw:
        write_page(json.loads(options.out.read_text(encoding="utf-8")))
        return
    used, options.absent = installed(options.peers, options.targets)
    document = start_document(options, used)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads), "1"
    work = options.out.parent / "work"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(work / "inductor")
    have = {(found["size"], found["precision"]) for found in document["measured"]}
    try:
        for size in options.sizes:
            for precision in options.precisions:
                if (size, precision) in have:
                    continue
                document["measured"].append(measure(Case(size, precision, work / f"{size}-{precision}", options)))
                with atomic_file(options.out, force=True) as temporary:
                    temporary.write_text(json.dumps(document, indent=1), encoding="utf-8")
                shutil.rmtree(work / f"{size}-{precision}")  # gigabytes
    except LramError as error:
        raise SystemExit(f"error: {error}") from None
    finally:
        shutil.rmtree(work / "inductor", ignore_errors=True)
    print("\n".join(shown.lines(document)))
    if options.page:
        write_page(document)


if __name__ == "__main__":
    main()
