"""The charts of a flight: all over its time, all in bins, so that a night is as readable as a minute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lram_export.flight.events import DONE, EPISODE, NO_EVENT, RESUMED, STOPPED, SWAPPED
from lram_export.report.bins import Bins, Counted, Floats, Spread
from lram_export.report.charts import SPREAD, Chart, as_svg, colour, line, log_axis
from lram_export.report.flight import FlightView, marks
from lram_export.report.flight_actions import Element
from lram_export.report.flight_again import Again, Parting

HEIGHT = 3.6
NO_STEPS = "No step is in the file."
MOST_LINES = 8
"""Kinds of faults that a chart has, the most frequent."""
MOST_PANELS = 8
"""Elements of an action that are drawn, those that were held back most often."""
PANEL = 1.15
"""Inches of one of them."""
MOST_MARKS = 30
"""Swaps and stops that a chart marks."""
SHORTEST = 1e-3
"""Milliseconds: what a logarithmic axis shows of less."""
SMALLEST, LARGEST = 1e-12, 1e12
"""Errors beyond are drawn there."""
UNITS = ((180.0, 1.0, "seconds"), (10_800.0, 60.0, "minutes"), (np.inf, 3600.0, "hours"))
ROWS = {
    EPISODE: "episode", RESUMED: "resumed", DONE: "done", SWAPPED: "swap", NO_EVENT: "no event", STOPPED: "stop",
}  # fmt: skip
MOST_TICKS = 1000
"""Of one kind of event."""
CHOSEN, SENT = "chosen by the policy", "sent to the robot"
FAINTEST = 0.2
"""Of a tick."""
RUGS = (("#b42318", "clamped by a limit"), ("#6f42c1", "changed by safety"))
DASHED = (0, (4, 3))


def flight_charts(flight: FlightView, again: Again) -> list[Chart]:
    """Every chart of a flight; those of what never happened say so."""
    return [
        _latency_chart(flight),
        _policy_chart(flight),
        _missed_chart(flight),
        _faults_chart(flight),
        _parting_chart(flight, again),
        _events_chart(flight),
        _actions_chart(flight),
    ]


def _chart(
    flight: FlightView,
    name: str,
    title: str,
    reading: str,
    labels: Sequence[str],
    draw: Callable[[Axes], None],
    missing: str = "",
    height: float = HEIGHT,
) -> Chart:
    """A chart over the whole of a flight; ``missing``: why there is nothing to draw."""

    def drawn(figure: Figure) -> None:
        axes = figure.subplots()
        draw(axes)
        _over_time(axes, flight, flight.edges)

    missing = missing if flight.steps else NO_STEPS
    return Chart(name, title, reading, None if missing else as_svg(name, title, labels, height, drawn), missing)


def _latency_chart(flight: FlightView) -> Chart:
    return _chart(
        flight,
        "flight-latency",
        "Latency over the flight",
        "From a reading to its action. The line is the median of a stretch of time, the band reaches from the fastest "
        "step to 99% of them, the dots are the slowest. The dashed line is the deadline. Dotted lines across any of "
        "these charts are swaps (blue) and stops (orange).",
        ("latency",),
        lambda axes: _times(axes, flight, flight.latency, "latency", flight.deadline),
        "" if np.isfinite(flight.latency.median).any() else "No action was sent in this flight.",
    )


def _policy_chart(flight: FlightView) -> Chart:
    return _chart(
        flight,
        "flight-policy",
        "Time of the policy's step over the flight",
        "What of the latency is the policy's own computation; the rest is checking and sending. Drawn as the latency "
        "is. A policy that got slower as the machine got warm shows here.",
        ("step",),
        lambda axes: _times(axes, flight, flight.policy, "step", None),
        "" if np.isfinite(flight.policy.median).any() else "The policy took no step in this flight.",
    )


def _missed_chart(flight: FlightView) -> Chart:
    lines = {"missed deadlines": flight.missed_so_far}
    if flight.missing:
        lines["steps not in the file"] = flight.missing_so_far
    return _chart(
        flight,
        "flight-missed",
        "Missed deadlines over the flight",
        "How many there were so far, and how many steps are not in the file, if any. A level line is a time in which "
        "nothing was late; a jump is one hiccup, a slope a loop that cannot keep its rate.",
        tuple(lines),
        lambda axes: _so_far(axes, flight, lines),
    )


def _faults_chart(flight: FlightView) -> Chart:
    lines = {plain(count.kind): count.so_far for count in flight.faults[:MOST_LINES]}
    return _chart(
        flight,
        "flight-faults",
        "Faults over the flight",
        "How many steps so far had a fault, by kind. All were bridged but the one at which the robot was stopped, if "
        "it was. A slope is a sensor or a bus that fails all the time, a jump a gap.",
        tuple(lines),
        lambda axes: _so_far(axes, flight, lines),
        "" if lines else "No step of this flight had a fault.",
    )


def _events_chart(flight: FlightView) -> Chart:
    rows = {name: flight.times(kind) for kind, name in ROWS.items() if flight.times(kind)}
    return _chart(
        flight,
        "flight-events",
        "What happened, and when",
        "A tick for each event: where episodes begin and end, where another bundle took over, where the robot was "
        "stopped, and where it could not be asked for its events.",
        tuple(rows),
        lambda axes: _ticks(axes, flight, rows),
        "" if rows else "Nothing happened in this flight.",
        1.0 + 0.36 * len(rows),
    )


def _over_time(axes: Axes, flight: FlightView, edges: Floats) -> None:
    """Marks of what concerns every chart, and a time axis from the first to the last edge, in the flight's unit."""
    factor, unit = _unit(flight)
    for time, kind in marks(flight)[:MOST_MARKS]:
        axes.axvline(time / factor, color=colour(1 if kind == STOPPED else 0), linestyle=(0, (1, 2)), linewidth=1)
    low, high = edges[0] / factor, edges[-1] / factor
    axes.set_xlim(low - 0.01 * (high - low), high + 0.01 * (high - low))
    axes.set_xlabel(f"{unit} since the loop began")


def _unit(flight: FlightView) -> tuple[float, str]:
    return next((factor, name) for longest, factor, name in UNITS if flight.edges[-1] <= longest)


def _edges(flight: FlightView) -> Floats:
    return flight.edges / _unit(flight)[0]


def _bands(axes: Axes, edges: Floats, spread: Spread, label: str, number: int) -> None:
    """The median as a line, the least and the 99th percentile as a band around it, the most as dots."""
    axes.stairs(spread.p99, edges, baseline=spread.least, fill=True, color=colour(number), alpha=0.25, linewidth=0)
    axes.stairs(spread.median, edges, baseline=None, color=colour(number), linewidth=1.4, label=label)
    axes.plot((edges[:-1] + edges[1:]) / 2, spread.most, ".", markersize=2.5, color=colour(number))


def _times(axes: Axes, flight: FlightView, seconds: Spread, label: str, deadline: float | None) -> None:
    spread = Spread(
        *(np.maximum(1e3 * s, SHORTEST) for s in (seconds.least, seconds.median, seconds.p99, seconds.most))
    )
    _bands(axes, _edges(flight), spread, label, 0)
    low, high = float(np.nanmin(spread.least)), float(np.nanmax(spread.most))
    if deadline is not None:
        axes.axhline(1e3 * deadline, color="0.3", linestyle=DASHED)
        axes.annotate(
            "deadline", (1, 1e3 * deadline), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9,
            color="0.3",
        )  # fmt: skip
        high = max(high, 1e3 * deadline)
    wide = high > SPREAD * low
    axes.set_ylim(0.8 * low if wide else 0, 1.3 * high if wide else 1.1 * high)
    if wide:
        log_axis(axes, "y")
    axes.set_ylabel("milliseconds")


def _so_far(axes: Axes, flight: FlightView, counts: Mapping[str, Counted]) -> None:
    edges = _edges(flight)
    for number, (label, so_far) in enumerate(counts.items()):
        style = {"color": colour(number), "linestyle": line(number), "label": label}
        axes.plot(edges, np.append(0, so_far), linewidth=1.4, **style)
    axes.set_ylim(bottom=0, top=max(1.0, 1.1 * max(int(so_far[-1]) for so_far in counts.values())))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("so far")
    axes.legend(loc="upper left")


def _ticks(axes: Axes, flight: FlightView, rows: Mapping[str, Sequence[float]]) -> None:
    step = (flight.edges[-1] - flight.edges[0]) / MOST_TICKS
    for number, (name, at) in enumerate(rows.items()):
        times = np.unique(np.round(np.array(at) / step)) * step / _unit(flight)[0]
        axes.plot(times, np.full(len(times), number), "|", markersize=13, color=colour(number), label=name)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)


def _actions_chart(flight: FlightView) -> Chart:
    name, title = "flight-actions", "Actions over the flight"
    reading = (
        "What reached the robot (blue: the mean of a stretch of time, and a band from the least to the most) over "
        "what the policy chose (orange). Where they part, safety, a faster controller or a fault lies between them. "
        "Ticks at the lower edge: a limit clamped it; at the upper one: safety changed it; the fainter, the seldomer."
    )
    shown = most_held_back(flight.elements, MOST_PANELS)
    if len(shown) < len(flight.elements):
        reading += (
            f" Of {len(flight.elements)} elements these {len(shown)} were held back most often, or are the first."
        )
    if not flight.steps:
        return Chart(name, title, reading, None, NO_STEPS)
    labels = [plain(element.name) for element in shown]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(shown), sharex=True, squeeze=False)[:, 0]
        for axes, element in zip(panels, shown, strict=True):
            _panel(axes, flight, element)
        _over_time(panels[-1], flight, flight.edges)
        handles = [
            Line2D([], [], color=colour(0), label=SENT), Line2D([], [], color=colour(1), label=CHOSEN),
            *(Line2D([], [], color=c, marker="|", linestyle="", label=words) for c, words in RUGS),
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8.5)

    return Chart(name, title, reading, as_svg(name, title, labels, 1.0 + PANEL * len(shown), draw))


def most_held_back(elements: Sequence[Element], most: int) -> list[Element]:
    """So many elements of an action, in their order: those that were held back most often, then the first."""
    places = sorted(range(len(elements)), key=lambda i: -elements[i].held_back)[:most]
    return [elements[i] for i in sorted(places)]


def _panel(axes: Axes, flight: FlightView, element: Element) -> None:
    """One element over time."""
    edges = _edges(flight)
    middle = (edges[:-1] + edges[1:]) / 2
    axes.stairs(element.chosen.mean, edges, baseline=None, color=colour(1), linewidth=1.6, label=plain(element.name))
    side, number = (element.chosen, 1) if element.sent is None else (element.sent, 0)
    axes.stairs(side.most, edges, baseline=side.least, fill=True, color=colour(number), alpha=0.2, linewidth=0)
    if element.sent is not None:
        axes.stairs(element.sent.mean, edges, baseline=None, color=colour(0), linewidth=1.1)
    for (shade, _), counts, height in zip(RUGS, (element.clamped, element.changed), (0.05, 0.95), strict=True):
        at = counts > 0
        if not at.any():
            continue
        share = np.minimum(counts[at] / np.maximum(element.counts[at], 1), 1)
        shades = [to_rgba(shade, FAINTEST + (1 - FAINTEST) * part) for part in share.tolist()]
        place = axes.get_xaxis_transform()
        axes.scatter(middle[at], np.full(at.sum(), height), s=28, c=shades, marker="|", transform=place)
    axes.margins(y=0.15)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    unit = f", {element.unit}" if element.unit not in ("", "1") else ""
    axes.set_title(plain(element.name + unit), loc="left", fontsize=9, pad=2)


def _parting_chart(flight: FlightView, again: Again) -> Chart:
    parting = again.parting
    name, title = "flight-parting", "Where the exported policy and the reference part"
    reading = (
        "The target that flew took the flight's steps once more, and so did the reference, over the same recorded "
        "inputs. The line is the median error of the outputs in a stretch of time, the band reaches from the least to "
        "99%, the dots are the largest; the dashed line is the tolerance. A cross is a step at which another action "
        "was chosen, the ring the worst step."
    )
    if parting is None:
        return Chart(name, title, reading, None, f"Not compared with the reference: {again.why_not}.")

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        edges = _parting(axes, flight, parting)
        _over_time(axes, flight, edges)

    return Chart(name, title, reading, as_svg(name, title, ("error",), HEIGHT, draw))


def _parting(axes: Axes, flight: FlightView, parting: Parting) -> Floats:
    factor, _ = _unit(flight)
    bins = Bins(parting.times)
    errors = np.clip(parting.errors, SMALLEST, LARGEST)
    _bands(axes, bins.edges / factor, bins.spread(errors), "error", 0)
    places = np.flatnonzero(parting.different)
    if len(places):  # of each stretch of time the one that is furthest off
        by_bin = np.searchsorted(bins.ends, places, side="right")
        order = np.lexsort((-errors[places], by_bin))
        _, first = np.unique(by_bin[order], return_index=True)
        at = places[order[first]]
        axes.plot(parting.times[at] / factor, errors[at], "x", markersize=6, color=colour(1), label="another action")
    worst = parting.worst
    where = (parting.times[worst] / factor, errors[worst])
    axes.plot(*where, "o", markersize=8, markerfacecolor="none", color="0.2")
    late = parting.times[worst] > bins.edges.mean()
    axes.annotate(
        f"step {parting.numbers[worst]:,}", where, xytext=(-8 if late else 8, 6), textcoords="offset points",
        ha="right" if late else "left", fontsize=9, color="0.2",
    )  # fmt: skip
    axes.axhline(parting.tolerance.logit, color="0.4", linestyle=DASHED)
    axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set_ylabel("relative error of the outputs" if parting.tolerance.relative else "largest error of an output")
    if len(places):
        axes.legend(loc="lower right")
    return bins.edges


def plain(text: str) -> str:
    """Text of a file as it is: no formula, and in the legend."""
    return text.replace("$", r"\$").lstrip("_")
