"""What the charts of benchmarks share: logarithmic axes with every point named, a legend below, a file that is the same
for the same numbers and is drawn light or dark, as its reader has it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lram_export.system.files import atomic_file

DARK = {"#ffffff": "#131416", "#000000": "#e6e6e6", "#e6e6e6": "#33363b", "#0072b2": "#56b4e9"}
"""Paper, ink, grid, and a blue that is dim on dark paper -> what they are where the reader prefers dark colours."""


def pyplot() -> Any:
    """matplotlib's, without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "lram-export"  # else names inside the file are random
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


def plain_logarithmic(axes: Any, across: str) -> None:
    """The axis across logarithmic, with numbers as people write them; a line across for every row that is named."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set(xscale="log", xlabel=across)
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.2, high * 1.3)  # room for the numbers of the outermost dots
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(LogLocator(subs=()))
    axes.grid(True, axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def save(figure: Any, path: Path) -> None:
    """As SVG, whole or not at all."""
    with atomic_file(path, force=True) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
        temporary.write_text(_with_dark_colours(temporary.read_text(encoding="utf-8")), encoding="utf-8")
    pyplot().close(figure)


def _with_dark_colours(svg: str) -> str:
    """Rules for both ways that matplotlib gives a colour: in a style, or none at all where it is black."""
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    )
    style = f"@media (prefers-color-scheme: dark){{svg{{fill:{DARK['#000000']}}}{rules}}}</style>"
    changed, found = re.subn("</style>", style, svg, count=1)
    assert found, "matplotlib writes no style any more"
    return changed
