"""What the charts of benchmarks share: logarithmic axes with every point named, a legend below, a file that is the same
for the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lram_export.system.files import atomic_file


def pyplot() -> Any:
    """matplotlib's, without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def logarithmic(axes: Any, ticks: Sequence[float], names: Sequence[str], across: str, up: str) -> None:
    """Both axes logarithmic; ``ticks`` across with their ``names``."""
    from matplotlib.ticker import LogFormatter

    axes.set(xscale="log", yscale="log", xlabel=across, ylabel=up)
    axes.set_xticks(ticks, names, rotation=45)
    axes.set_xticks([], minor=True)
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(LogFormatter(minor_thresholds=(2, 1)))
    axes.grid(True, which="major", color="0.9")
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.24))


def save(figure: Any, path: Path) -> None:
    """As SVG, whole or not at all."""
    with atomic_file(path, force=True) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    pyplot().close(figure)
