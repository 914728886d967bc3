"""The charts of a report, as SVG that needs no script. One function per chart, each from plain arrays."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from lram_export.report.collect import Floats, Report, Row

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
"""Okabe and Ito's, which people who see red and green alike can tell apart."""
MARKERS = "osD^vP*X"
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (9, 3)), (0, (1, 4)), (0, (3, 1, 1, 5)))
WIDTH = 5.4
"""Of a chart, inches, as its text is."""
INSIDE = 4
"""Most rows whose legend has room inside a chart; that of more goes below it."""
SPREAD = 8.0
"""Factor between the fastest and the slowest step from which on a time axis is logarithmic."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "lram-export",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.constrained_layout.use": True,
}
"""Only while a chart is drawn: somebody else's plots in this process keep their style."""


@dataclass(frozen=True)
class Chart:
    """A chart with its name, and a sentence on how to read it; ``svg`` is None where there is nothing to show."""

    name: str
    title: str
    reading: str
    svg: str | None
    missing: str = ""


def all_charts(report: Report) -> list[Chart]:
    """Every chart, in the order in which somebody who signs off a policy asks."""
    compared = [row for row in report.rows if row.errors is not None and row.bundle == str(report.bundle.path)]
    decided = [row for row in compared if row.errors is not None and row.errors.gaps.size]
    timed = [row for row in report.rows if row.seconds is not None and row.bundle == str(report.bundle.path)]
    both = [row for row in report.rows if row.against_float32 is not None and row.timing is not None]
    not_compared = "No target was run for this report: lram-export report compares those that are installed."
    not_timed = "No target was timed for this report: lram-export report does it, unless --no-timing says otherwise."

    def chart(
        name: str, title: str, reading: str, draw: Callable[[Axes, list[Row]], None], rows: list[Row], missing: str
    ) -> Chart:
        labels = {row.label for row in rows}
        svg = _svg(name, title, labels, len(rows), lambda axes: draw(axes, rows)) if rows else None
        return Chart(name, title, reading, svg, missing)

    deadline = report.options.rate
    return [
        chart(
            "drift",
            "Error of the outputs over the steps",
            "Each line is a target beside its oracle. A line that stays level does not drift; one that climbs would "
            "get worse the longer an episode lasts. The dashed line is the tolerance that verify allows; where targets "
            "have different ones, errors are told in tolerances, and the line is at 1.",
            _drift,
            compared,
            not_compared,
        ),
        chart(
            "errors",
            "Distribution of the error of an output",
            "How often a single number of it is off by how much, on a logarithmic scale. Symmetric and narrow is "
            "right; a second hump or a long tail to one side would be a systematic error.",
            _error_distribution,
            compared,
            not_compared,
        ),
        chart(
            "ties",
            "Actions beside how close the call was",
            "Every dot is one action value (of those that agree, a part): how far apart the oracle's two best logits "
            "were, and how far the target's logits were off. Only on or above the line can an error decide, so crosses "
            "(another action was chosen) may lie there and nowhere else.",
            _ties,
            decided,
            not_compared if not compared else "This policy gives values: nothing is chosen from scores.",
        ),
        chart(
            "state",
            "Norm of the recurrent memory over the steps",
            "The memory of a policy that works settles at some size. Lines of all targets lie on each other; one that "
            "leaves them, or grows without end, would end in wrong actions.",
            _state_norm,
            compared,
            not_compared,
        ),
        chart(
            "latency",
            "Time of a step",
            "How often a step took how long. What counts for a control loop is the right end: a target with a thin "
            "tail is predictable. The dashed line is the deadline, where a rate was given. Where targets differ much, "
            "the axis is logarithmic.",
            lambda axes, rows: _latency_histogram(axes, rows, deadline),
            timed,
            not_timed,
        ),
        chart(
            "deadline",
            "Share of the steps that took longer",
            "For a time on the horizontal axis, the share of steps that took longer, on a logarithmic scale: at 0.001 "
            "one step in a thousand. Where a line crosses the deadline is how often it is missed.",
            lambda axes, rows: _latency_tail(axes, rows, deadline),
            timed,
            not_timed,
        ),
        chart(
            "flat",
            "Time of a step over the steps",
            "A recurrent policy takes as long at the ten thousandth step as at the first, so the lines are level. "
            "Bumps and spikes are the machine's other work. Where targets differ much, the axis is logarithmic.",
            _latency_over_time,
            timed,
            not_timed,
        ),
        chart(
            "choice",
            "The choice: time, error and size",
            "Down and to the left is better; the area of a dot is the size on disk. The error is that against the "
            "float32 model: what the precision costs, and what the target adds to it. Several precisions of one policy "
            "(other bundles given with --also) make this the picture to choose from.",
            _choice,
            both,
            not_timed,
        ),
    ]


def _svg(name: str, title: str, labels: Collection[str], rows: int, draw: Callable[[Axes], None]) -> str:
    """A chart of rows, with room for their legend."""
    below = 0.0 if rows <= INSIDE else 0.19 * ((rows + 2) // 2)
    return as_svg(name, title, labels, 3.6 + below, lambda figure: draw(figure.subplots()))


def as_svg(name: str, title: str, labels: Collection[str], height: float, draw: Callable[[Figure], None]) -> str:
    """A figure of some height, inches, as an SVG element that grows with its column and says to a screen reader what it
    is; what has one of the labels is its data."""
    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        draw(figure)
        artists = (artist for axes in figure.axes for artist in axes.get_children())
        for number, artist in enumerate(a for a in artists if str(a.get_label()) in labels):
            artist.set_gid(f"data-{number}")  # so that a test can tell data from axes
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    # names inside must not meet those of another chart on the same page
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def colour(number: int) -> str:
    """The colour of a row."""
    return COLOURS[number % len(COLOURS)]


def marker(number: int) -> str:
    """The mark of a row: with its colour it is that of no other of the first 64."""
    return MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]


def line(number: int) -> Any:
    """The kind of line of a row: with its colour it is that of no other of the first 64; also in grey."""
    return LINES[(number + number // len(COLOURS)) % len(LINES)]


def _styles(rows: Sequence[Row]) -> list[tuple[Row, dict[str, Any]]]:
    return [(row, {"color": colour(i), "linestyle": line(i), "label": row.label}) for i, row in enumerate(rows)]


def _legend(axes: Axes, rows: Sequence[Row], least: int = 2, **options: Any) -> list[Any]:
    """A legend inside, or below where it would hide the chart; its handles."""
    if len(rows) < least:
        return []
    if len(rows) <= INSIDE:
        return list(axes.legend(**options).legend_handles)
    figure = axes.figure
    handles, labels = axes.get_legend_handles_labels()
    below = figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8.5, **options)
    return list(below.legend_handles)


def _drift(axes: Axes, rows: list[Row]) -> None:
    bounds = [row.tolerance for row in rows]
    alike = len(set(bounds)) == 1
    for (row, style), bound in zip(_styles(rows), bounds, strict=True):
        assert row.errors is not None
        values = row.errors.relative if bound.relative else row.errors.largest
        axes.semilogy(np.maximum(values if alike else values / bound.logit, 1e-12), linewidth=1.2, **style)
    axes.axhline(bounds[0].logit if alike else 1.0, color="0.4", linestyle=(0, (4, 3)))
    axes.set_xlabel("step")
    kind = "relative error of the outputs" if bounds[0].relative else "largest error of an output"
    axes.set_ylabel(kind if alike else "error of the outputs, in tolerances")
    _legend(axes, rows)


def _error_distribution(axes: Axes, rows: list[Row]) -> None:
    numbers = [row.errors.signed[np.isfinite(row.errors.signed)] for row in rows if row.errors is not None]
    widest = max(float(np.abs(errors).max(initial=0)) for errors in numbers) or 1e-12
    bins = np.linspace(-widest, widest, 61)
    for (row, style), errors in zip(_styles(rows), numbers, strict=True):
        assert row.errors is not None
        counts, _ = np.histogram(errors, bins)
        axes.stairs(counts / row.errors.signed.size, bins, linewidth=1.4, **style)
    axes.set_yscale("log")
    axes.set_xlabel("error of an output")
    axes.set_ylabel("share of the numbers")
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 2))
    _legend(axes, rows)


def _ties(axes: Axes, rows: list[Row]) -> None:
    smallest = 1e-9
    for number, row in enumerate(rows):
        errors = row.errors
        assert errors is not None
        gap, difference = np.maximum(errors.gaps, smallest), np.maximum(errors.differences, smallest)
        shown = np.flatnonzero(~errors.different)[:1500]
        style: dict[str, Any] = {"color": colour(number), "marker": marker(number)}
        axes.scatter(gap[shown], difference[shown], s=8, alpha=0.35, label=row.label, linewidths=0, **style)
        axes.scatter(
            gap[errors.different], difference[errors.different], s=42, marker="x", color=colour(number), linewidths=1.6
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_xlim()
    ends = np.array([low, high])
    axes.plot(ends, ends / 2, color="0.4", linestyle=(0, (4, 3)), linewidth=1)
    axes.set_xlim(low, high)
    axes.set_xlabel("gap between the oracle's two best logits")
    axes.set_ylabel("largest error of a logit")
    for handle in _legend(axes, rows, markerscale=2):
        handle.set_alpha(1)


def _state_norm(axes: Axes, rows: list[Row]) -> None:
    for row, style in _styles(rows):
        assert row.errors is not None
        axes.plot(row.errors.state_steps, row.errors.state_norm, linewidth=1.3, **style)
    oracle = next((r.errors for r in rows if r.errors is not None and r.errors.oracle_norm.size), None)
    if oracle is not None:
        axes.plot(oracle.state_steps, oracle.oracle_norm, color="0.2", linewidth=0.8, label="PyTorch")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("norm of the memory")
    _legend(axes, rows, least=1 if oracle is not None else 2)


def _times(rows: list[Row]) -> list[Floats]:
    """Milliseconds of the steps of every row."""
    return [1e3 * row.seconds for row in rows if row.seconds is not None]


def _span(times: list[Floats]) -> tuple[float, float, bool]:
    """Ends of a time axis in ms, and whether it is logarithmic: one target that takes a thousand times as long must not
    squeeze the others together, nor one hiccup of a target that is as fast as they are."""
    low = min(float(ms.min()) for ms in times)
    usual = 1.1 * max(float(np.percentile(ms, 99.5)) for ms in times)
    logarithmic = usual > SPREAD * low
    return low, 1.1 * max(float(ms.max()) for ms in times) if logarithmic else usual, logarithmic


def log_axis(axes: Axes, which: str) -> None:
    """A logarithmic axis whose few ticks read as plain numbers."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _latency_histogram(axes: Axes, rows: list[Row], rate: float | None) -> None:
    low, high, logarithmic = _span(_times(rows))
    if rate is not None:
        high = max(high, 1.05e3 / rate)
        logarithmic = logarithmic or high > SPREAD * low
    bins = np.geomspace(0.9 * low, high, 81) if logarithmic else np.linspace(0, high, 81)
    for (_, style), ms in zip(_styles(rows), _times(rows), strict=True):
        counts, _edges = np.histogram(np.minimum(ms, high), bins)
        axes.stairs(counts / ms.size, bins, linewidth=1.4, **style)
    if logarithmic:
        log_axis(axes, "x")
    _deadline(axes, rate)
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("share of the steps")
    _legend(axes, rows)


def _latency_tail(axes: Axes, rows: list[Row], rate: float | None) -> None:
    for (_, style), ms in zip(_styles(rows), _times(rows), strict=True):
        longer = 1 - np.arange(len(ms)) / len(ms)
        axes.step(np.sort(ms), longer, where="pre", linewidth=1.4, **style)
    _deadline(axes, rate)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("share of the steps that took longer")
    _legend(axes, rows)


def _deadline(axes: Axes, rate: float | None) -> None:
    if rate is not None:
        axes.axvline(1e3 / rate, color="0.3", linestyle=(0, (4, 3)))
        axes.annotate(
            f"{rate:g} Hz", (1e3 / rate, 1), xycoords=("data", "axes fraction"), ha="right", va="top",
            rotation=90, fontsize=9, color="0.3",
        )  # fmt: skip


def _latency_over_time(axes: Axes, rows: list[Row]) -> None:
    for (_, style), ms in zip(_styles(rows), _times(rows), strict=True):
        axes.plot(ms, linewidth=0.9, **style)
    low, high, logarithmic = _span(_times(rows))
    axes.set_ylim(0.8 * low if logarithmic else 0, 1.2 * high)
    if logarithmic:
        log_axis(axes, "y")
    axes.set_xlabel("timed step")
    axes.set_ylabel("milliseconds")
    _legend(axes, rows)


def _choice(axes: Axes, rows: list[Row]) -> None:
    largest = max(row.size for row in rows)
    for number, row in enumerate(rows):
        assert row.against_float32 is not None
        assert row.timing is not None
        axes.scatter(
            row.timing.p50_ms,
            max(row.against_float32, 1e-9),
            s=30 + 420 * row.size / largest,
            marker=marker(number),
            color=colour(number),
            alpha=0.8,
            label=row.label,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(0.25)
    axes.set_xlabel("median milliseconds of a step")
    axes.set_ylabel("relative error against float32")
    for handle in _legend(axes, rows, least=1):
        if isinstance(handle, PathCollection):  # dots of one size: the sizes are those on disk
            handle.set_sizes([40])
