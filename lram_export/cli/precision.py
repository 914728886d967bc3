"""How precisions are given and shown: shares in percent, what quantization cost, what `auto` chose."""

from __future__ import annotations

from typing import Any

import click

from lram_export.cli.console import print_table
from lram_export.describe import counted, human_bytes


class Share(click.ParamType[float]):
    """A share of a whole: ``0.5%`` or ``0.005``."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """From text to a number from 0 to 1."""
        text = str(value).strip()
        try:
            share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"expected a share like 0.5% or 0.005, got '{value}'", param, ctx)
        return share


SHARE = Share()


def print_choice(auto: dict[str, Any]) -> None:
    """The table of what `auto` measured and chose."""
    formats = list(dict.fromkeys(f for group in auto["groups"] for f in group["alone"]))
    rows = []
    for group in auto["groups"]:
        alone = group["alone"]
        cells = [
            f"{alone[f]['relative_error']:.2g} / {100 * alone[f]['disagreement']:.2g}%" if f in alone else "-"
            for f in formats
        ]
        rows.append([group["name"], *cells, group["format"]])
    chosen, tried = auto["chosen"], auto["tried"]
    notes = [
        "alone: relative logit error / action values off by more than one bin, on the episodes to choose by, where "
        "only this group is quantized; -: a target does not store that format",
        f"chosen: {human_bytes(chosen['bytes'])} for these matrices; on "
        f"{counted(chosen['episodes'], 'held-out episode')} "
        f"({counted(chosen['steps'], 'step')}) {100 * chosen['disagreement']:.2g}% of action values off by more "
        f"than one bin (95% bound {100 * chosen['disagreement_high']:.2g}%, "
        f"allowed {100 * auto['max_disagreement']:g}%)",
        "tried: "
        + ", ".join(f"{human_bytes(t['bytes'])} {100 * t['disagreement_high']:.2g}%" for t in tried)
        + " (95% bounds, on the episodes to choose by)",
    ]
    if auto["failed"]:
        failed = ", ".join(f"{human_bytes(t['bytes'])} {100 * t['disagreement_high']:.2g}%" for t in auto["failed"])
        notes.append(f"not kept to on the held-out episodes, so the next larger one was taken: {failed} (95% bounds)")
    print_table("precision auto", ["group", *(f"{f} alone" for f in formats), "chosen"], rows, notes)
