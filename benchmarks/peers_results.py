"""What `peers.py` measured, as lines of Markdown and as a chart: a row for each runtime, with the memory floor."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import charts
import results_page as page
from peers import ours, peer

from lram_export.describe import three_digits

CHART = "peers.svg"
ALT = "Milliseconds per step of every runtime, by size and precision, with the memory floor"
OURS = ("native", "tvm")
"""Whose kernels are this project's."""

OUR_COLOUR, COLOUR = "#0072b2", "#8a8a8a"
"""Theirs and everybody else's: told apart by any eye, on light and dark paper, and by the names beside them anyway."""

MARKERS = "osD^v"
"""By size."""

Document = Mapping[str, Any]


def lines(document: Document) -> list[str]:
    """Where it was measured, the chart, a table, what computes at int8, and who is left out."""
    sizes, precisions = (list(dict.fromkeys(m[what] for m in document["measured"])) for what in ("size", "precision"))
    options = document["where"]["options"]
    command = f"python benchmarks/peers.py --sizes {' '.join(sizes)} --precisions {' '.join(precisions)} --peers "
    command += f"{' '.join(options['peers'])} --steps {options['steps']} --threads {options['threads']}"
    return [
        *page.where([document], command),
        *best(document["measured"]),
        f"![{ALT}]({CHART})",
        "",
        *table(document["measured"]),
        "",
        *int8(options["peers"]),
        *left_out(document["measured"]),
    ]


def best(measured: Sequence[Document]) -> list[str]:
    """The headlines: `native` against the fastest runtime whose kernels are not ours."""
    found = []
    for case in measured:
        if others := _others(case):
            first = min(others, key=lambda row: float(row["against_native"]))
            found.append(
                f"- {case['size']} `{case['precision']}`: the fastest other runtime, {first['title']}, takes "
                f"{first['against_native']:.2f} times as long as `native`"
            )
    return [*found, ""] if found else []


def table(measured: Sequence[Document]) -> list[str]:
    """A row for every contender, the fastest first."""
    rows = []
    for case in measured:
        mark = "*" if case["warnings"] else ""
        for row in sorted(case["results"], key=lambda row: float(row["p50_ms"])):
            against = row["against_native"]
            rows.append(
                [
                    case["size"] + mark,
                    f"`{case['precision']}`",
                    row["title"],
                    three_digits(row["p50_ms"]),
                    three_digits(row["p99_ms"]),
                    "-" if against is None else f"{against:.2f}",
                    f"{row['p50_ms'] / case['floor_ms']:.2f}",
                    f"{row['relative_error']:.2g}",
                    "-" if row["peak_memory"] is None else f"{row['peak_memory'] / 1e6:,.0f} MB",
                ]
            )
    columns = ["size", "precision", "runtime", "p50 ms", "p99", "against native", "x floor", "logit error", "memory"]
    said = page.table(columns, rows)
    doubts = list(
        dict.fromkeys(f"{case['size']} `{case['precision']}`: {w}" for case in measured for w in case["warnings"])
    )
    if doubts:
        said += ["", f"\\* Not to be relied on. {'; '.join(doubts)}."]
    return said


def int8(names: Sequence[str]) -> list[str]:
    """What `int8` is on each runtime."""
    found = {"ours": ours.HOW["int8"]} | {peer(n).title: peer(n).how["int8"] for n in names if "int8" in peer(n).how}
    return [f"What computes at `int8`: {'; '.join(f'{name}: {how}' for name, how in found.items())}.", ""]


def left_out(measured: Sequence[Document]) -> list[str]:
    """Who and why, the same reason once."""
    where: dict[tuple[str, str], list[str]] = {}
    for case in measured:
        for title, reason in case["left_out"].items():
            where.setdefault((title, reason), []).append(f"{case['size']} `{case['precision']}`")
    return [f"- {title}, {', '.join(cases)}: left out, {reason}" for (title, reason), cases in where.items()]


def draw(document: Document, path: Path) -> None:
    """The chart: one half for each precision, a row for each runtime, the fastest first, with a dot for each size."""
    measured = document["measured"]
    names = order(measured)
    sizes = sorted({_millions(case) for case in measured})
    precisions = list(dict.fromkeys(case["precision"] for case in measured))
    figure, halves = charts.pyplot().subplots(
        1, len(precisions), figsize=(8.6, 1.6 + 0.36 * len(names)), layout="constrained", sharey=True, squeeze=False
    )
    for axes, precision in zip(halves[0], precisions, strict=True):
        cases = [case for case in measured if case["precision"] == precision]
        for case in cases:
            axes.axvline(case["floor_ms"], color=COLOUR, linestyle=":", linewidth=1, zorder=0)
            for row in case["results"]:
                _dot(axes, case, row, names.index(row["contender"]), MARKERS[sizes.index(_millions(case))])
        busy = "*" if any(case["warnings"] for case in cases) else ""
        charts.plain_logarithmic(axes, f"{precision}{busy}: milliseconds per step")
        axes.set_ylim(len(names) - 0.4, -1.1)
    halves[0][0].set_yticks(range(len(names)), [title_of(measured, name) for name in names])
    for label, name in zip(halves[0][0].get_yticklabels(), names, strict=True):
        if name in OURS:
            label.set(fontweight="bold", color=OUR_COLOUR)
    figure.suptitle(title(measured).replace(": the", "\nThe"), x=0.01, ha="left", fontsize=11, fontweight="bold")
    where = document["where"]
    machine = where["machine"].rpartition(" (")[0] or where["machine"]
    said = f"{machine}, {where['options']['threads']} threads, {where['date']}. Dotted: the memory floor of each size."
    figure.supxlabel(said + (" * Not an idle machine." if any(c["warnings"] for c in measured) else ""), fontsize=8)
    charts.save(figure, path)


def _dot(axes: Any, case: Document, row: Document, height: int, marker: str) -> None:
    """A runtime at a size, with its milliseconds; in the first row also which size that is."""
    colour, milliseconds = OUR_COLOUR if row["contender"] in OURS else COLOUR, row["p50_ms"]
    axes.plot(milliseconds, height, marker, color=colour, markersize=6)
    said = {"ha": "center", "textcoords": "offset points"}
    axes.annotate(three_digits(milliseconds), (milliseconds, height), (0, 5), fontsize=8, **said)
    if height == 0:
        axes.annotate(case["size"], (milliseconds, height), (0, 15), fontsize=8, fontweight="bold", **said)


def order(measured: Sequence[Document]) -> list[str]:
    """The runtimes, the fastest first: by how often the memory floor they take, over all that they were timed at."""
    floors: dict[str, list[float]] = {}
    for case in measured:
        for row in case["results"]:
            floors.setdefault(row["contender"], []).append(row["p50_ms"] / case["floor_ms"])
    return sorted(floors, key=lambda name: statistics.geometric_mean(floors[name]))


def title_of(measured: Sequence[Document], name: str) -> str:
    """What a runtime is called."""
    return next(str(row["title"]) for case in measured for row in case["results"] if row["contender"] == name)


def title(measured: Sequence[Document]) -> str:
    """The sentence above the chart, from what was measured: the smallest advantage at each precision."""
    found = []
    for precision, cases in itertools.groupby(sorted(measured, key=_precision), key=_precision):
        if ratios := [float(row["against_native"]) for case in cases for row in _others(case)]:
            found.append(f"{min(ratios):.2g} ({precision})")
    if not found:
        return "One step of an LRAM on several runtimes"
    return (
        f"One step of an LRAM: the fastest other runtime takes at least {' and '.join(found)} times as long as native"
    )


def _others(case: Document) -> list[Document]:
    """The rows of runtimes whose kernels are not ours, that were timed beside `native`."""
    return [row for row in case["results"] if row["contender"] not in OURS and row["against_native"] is not None]


def _precision(case: Document) -> str:
    precision: str = case["precision"]
    return precision


def _millions(case: Document) -> int:
    return int(case["size"].removesuffix("m"))
