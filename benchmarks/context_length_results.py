"""What `context_length.py` measured: points, where lines cross, tables and the chart."""

from __future__ import annotations

import dataclasses
import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import charts
from decision_transformer import transformer_name

from lram_export.cli.console import print_table

IN_PYTORCH = "LRAM, PyTorch"


@dataclass(frozen=True)
class Other:
    """Another action model of arXiv 2410.22391, exported in one of its contexts."""

    title: str
    backbone: str
    context: str | None = None


OTHERS = {
    "mamba": Other("Mamba", "mamba"),
    "window": Other("transformer, last 50 steps anew", "decision_transformer", "window"),
    "cache": Other("transformer, cache of 50 steps", "decision_transformer", "cache"),
}
COLOURS = ("#0072b2", "#009e73", "#cc79a7", "#000000", "#56b4e9")
"""Of the LRAM in PyTorch, of the exported one, and of the others."""

MB = 1e6


@dataclass(frozen=True)
class Options:
    """What to measure; ``seconds`` ends a window early, ``history`` counts steps of the LRAM."""

    preset: str
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    threads: int
    target: str
    caches: tuple[str, ...]
    others: tuple[str, ...]
    windows: int
    steps: int
    seconds: float
    history: int


@dataclass(frozen=True)
class Point:
    """One contender at one context length, in environment steps of the whole batch.

    ``ms`` is the median of all timed steps, ``window_ms`` that of each window; None and empty where ``skipped`` says
    why nothing was measured. ``context_bytes`` are the key-value cache or the recurrent state. ``history`` is the
    number of steps a policy behind the step API had really taken by the end of its turns, None for a transformer with a
    cache of everything. ``bound``: the steps that it acts by, whatever the length; None where they are all.
    """

    contender: str
    batch: int
    length: int
    ms: float | None
    window_ms: tuple[float, ...]
    timed_steps: int
    weight_bytes: int
    context_bytes: int
    history: int | None
    skipped: str | None = None
    bound: int | None = None

    @property
    def memory(self) -> int:
        """Bytes."""
        return self.weight_bytes + self.context_bytes


@dataclass(frozen=True)
class Crossing:
    """Where the transformer becomes slower than an LRAM for good: ``steps``, None if nowhere up to ``last``."""

    transformer: str
    lram: str
    batch: int
    steps: float | None
    first: int
    last: int
    last_ratio: float

    def __str__(self) -> str:
        if self.steps is None:
            where = f"not up to {self.last:,} steps"
        elif self.steps == self.first:
            where = f"from the first length on ({self.first:,} steps)"
        else:
            where = f"from {self.steps:,.0f} steps on"
        ratio = f"at {self.last:,} steps {self.last_ratio:.2f} times its time"
        return f"batch {self.batch}: {self.transformer} slower than {self.lram} {where}; {ratio}"


def exported_name(options: Options) -> str:
    """The contender's name."""
    return f"LRAM, {options.target}"


def other_name(other: str, options: Options) -> str:
    """A contender's name, by the key of :data:`OTHERS`."""
    return f"{OTHERS[other].title}, {options.target}"


def results(points: Sequence[Point], options: Options) -> dict[str, Any]:
    """Points and headlines as plain JSON values."""
    found = [dataclasses.asdict(crossing) for crossing in crossings(points, options)]
    return {"points": [dataclasses.asdict(point) for point in points], "crossings": found}


def crossings(points: Sequence[Point], options: Options) -> Iterator[Crossing]:
    """Every transformer against every LRAM at every batch size."""
    times = {(p.contender, p.batch, p.length): p.ms for p in points if p.ms is not None}
    names = [transformer_name(kind) for kind in options.caches]
    for batch, transformer, lram in itertools.product(options.batches, names, (IN_PYTORCH, exported_name(options))):
        ratios = {
            length: times[transformer, batch, length] / times[lram, batch, length]
            for length in options.lengths
            if (transformer, batch, length) in times and (lram, batch, length) in times
        }
        if ratios:
            lengths = list(ratios)
            last = lengths[-1]
            yield Crossing(transformer, lram, batch, crossing_of(ratios), lengths[0], last, ratios[last])


def crossing_of(ratios: dict[int, float]) -> float | None:
    """The context length from which on all ratios are above 1, interpolated between logarithms; None if nowhere."""
    points = list(ratios.items())
    slower = len(list(itertools.takewhile(lambda point: point[1] > 1, reversed(points))))
    if slower == 0:
        return None
    if slower == len(points):
        return float(points[0][0])
    (x0, y0), (x1, y1) = points[-slower - 1], points[-slower]
    part = -math.log(y0) / (math.log(y1) - math.log(y0))
    return math.exp(math.log(x0) + part * (math.log(x1) - math.log(x0)))


def show(document: dict[str, Any], points: Sequence[Point], options: Options) -> None:
    """Tables on standard output, one per batch size, and the headlines."""
    for batch in options.batches:
        show_batch([point for point in points if point.batch == batch], batch, options)
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    lram, transformer = (document["parameters"][name] for name in ("lram", "transformer"))
    print(f"{document['cpu']}, {options.threads} threads; {versions}")
    print(
        f"parameters: LRAM {lram:,}, transformer {transformer:,} ({transformer / lram - 1:+.1%}, without its table of "
        f"positions)"
    )
    for crossing in crossings(points, options):
        print(crossing)


def show_batch(points: Sequence[Point], batch: int, options: Options) -> None:
    """One table: rows are context lengths."""
    names = list(dict.fromkeys(p.contender for p in points))
    at = {(p.contender, p.length): p for p in points}
    exported, transformer = exported_name(options), names[0]
    rows = []
    for length in options.lengths:
        cells = [_cell(at.get((name, length))) for name in names]
        memory = [f"{at[name, length].memory / MB:,.0f}" for name in (transformer, exported)]
        rows.append([f"{length:,}", *cells, *memory])
    columns = ["context (steps)", *(f"{name} (ms)" for name in names), "transformer (MB)", "LRAM (MB)"]
    notes = [f"{p.length:,} steps, {p.contender}: {p.skipped}" for p in points if p.skipped]
    title = f"{options.preset}, batch {batch}: milliseconds per environment step, weights and cache or state"
    print_table(title, columns, rows, notes)


def _cell(point: Point | None) -> str:
    if point is None:
        return "as above"
    return "no memory" if point.ms is None else f"{point.ms:,.2f}"


def draw(document: dict[str, Any], points: Sequence[Point], options: Options, path: Path) -> None:
    """The chart: latency and memory against the context, one line per contender and batch size."""
    plt = charts.pyplot()
    names = list(dict.fromkeys(p.contender for p in points))
    palette = [*("#d55e00", "#e69f00")[: len(options.caches)], *COLOURS]
    colours = dict(zip(names, palette, strict=False))
    figure, (latency, memory) = plt.subplots(1, 2, figsize=(12, 6.4), layout="constrained")
    for batch, line in zip(options.batches, itertools.cycle(("-", "--", ":", "-."))):
        style = {"linestyle": line, "marker": "o", "markersize": 4}
        for name in names:
            own = [p for p in points if p.contender == name and p.batch == batch]
            timed = [p for p in own if p.ms is not None]
            at = [p.length for p in timed]
            if timed and timed[0].bound is not None:  # the same at any length
                at = [*at, max(options.lengths)]
                timed = [*timed, timed[-1]]
            label = f"{name}, batch {batch}"
            latency.plot(at, [p.ms for p in timed], color=colours[name], label=label, **style)
        for name, label in ((names[0], "transformer"), (exported_name(options), "LRAM")):
            own = [p for p in points if p.contender == name and p.batch == batch]
            sizes = [p.memory / MB for p in own]
            label = f"{label}, batch {batch}"
            memory.plot([p.length for p in own], sizes, color=colours[name], label=label, **style)
    if document["total_memory"]:
        memory.axhline(document["total_memory"] / MB, color="0.5", linewidth=1, label="memory of this machine")
    for axes, what in ((latency, "milliseconds per environment step"), (memory, "MB: weights and cache or state")):
        lengths = [f"{length:,}" for length in options.lengths]
        charts.logarithmic(axes, options.lengths, lengths, "context (environment steps)", what)
    figure.suptitle(textwrap.fill(title(points, options), 110))
    threads = f"{options.threads} thread{'s' if options.threads > 1 else ''}"
    figure.supxlabel(f"{options.preset}, float32, {document['cpu']}, {threads}", fontsize=8, color="0.4")
    charts.save(figure, path)


def title(points: Sequence[Point], options: Options) -> str:
    """The sentence above the chart, from what was measured: the transformer at its best against both LRAMs."""
    found = [c for c in crossings(points, options) if c.batch == options.batches[0]]
    if not found:
        return "The transformer's cache did not fit into this machine's memory at any context length"
    last = max(c.last for c in found)
    ratios = {c.lram: min(o.last_ratio for o in found if (o.lram, o.last) == (c.lram, last)) for c in found}
    in_pytorch, exported = (f"{ratios[name]:.2g}" for name in (IN_PYTORCH, exported_name(options)))
    return (
        f"After {last:,} steps the transformer takes {in_pytorch} times as long per step as the LRAM in PyTorch and "
        f"{exported} times as long as the exported one (batch {options.batches[0]})"
    )
