"""What `peers.py` measured, as lines of Markdown and as a chart: milliseconds against size, with the memory floor."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import charts
import results_page as page
from peers import ours, peer

from lram_export.describe import three_digits

CHART = "peers.svg"
COLOURS = {
    "native": "#0072b2",
    "tvm": "#56b4e9",
    "onnxruntime": "#009e73",
    "openvino": "#e69f00",
    "compile": "#d55e00",
    "aotinductor": "#cc79a7",
    "executorch": "#999999",
    "iree": "#882255",
    "mnn": "#332288",
}
"""The same in both halves of the chart."""

OURS = ("native", "tvm")
"""Whose kernels are this project's: drawn through, the others dashed."""

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
        f"![Milliseconds per step against size, every runtime, with the memory floor]({CHART})",
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
    """The chart: one half for each precision."""
    measured = document["measured"]
    precisions = list(dict.fromkeys(case["precision"] for case in measured))
    figure, halves = charts.pyplot().subplots(
        1, len(precisions), figsize=(12, 6.4), layout="constrained", sharey=True, squeeze=False
    )
    for axes, precision in zip(halves[0], precisions, strict=True):
        cases = sorted((case for case in measured if case["precision"] == precision), key=lambda case: _millions(case))
        for name in dict.fromkeys(row["contender"] for case in cases for row in case["results"]):
            own = [(_millions(case), row) for case in cases for row in case["results"] if row["contender"] == name]
            axes.plot(
                [millions for millions, _ in own],
                [row["p50_ms"] for _, row in own],
                color=COLOURS[name],
                linestyle="-" if name in OURS else "--",
                linewidth=2.5 if name == page.NATIVE else 1.5,
                marker="o",
                markersize=4,
                label=own[0][1]["title"],
            )
        floor = [case["floor_ms"] for case in cases]
        sizes = [_millions(case) for case in cases]
        axes.plot(sizes, floor, color="black", linestyle=":", marker="_", label="memory floor")
        charts.logarithmic(axes, sizes, [case["size"] for case in cases], "weights", "milliseconds per step")
        axes.set_title(precision, fontsize=10)
    figure.suptitle(textwrap.fill(title(measured), 110))
    where = document["where"]
    figure.supxlabel(f"{where['machine']}, {where['options']['threads']} threads", fontsize=8, color="0.4")
    charts.save(figure, path)


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
