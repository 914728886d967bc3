"""Alterations that cannot matter, each with the reason: what they change decides nothing that a robot does."""

from __future__ import annotations

import re

from .mutations import Mutant

TOLD = "told to people, used for nothing"
ACCEPTED: tuple[tuple[str, str, str], ...] = (
    ("manifest.json", r"(created|generator|source\.file)", TOLD),
    ("manifest.json", r"artifacts\.0\.tools(\..*)?", TOLD),
    ("manifest.json", r"artifacts\.0\.parity.*|artifacts\.0\.verified_by", "what export found; verify finds it anew"),
    ("manifest.json", r"artifacts\.0\.weight_bytes", "predicts speed and memory; bounded by the size of the files"),
    (
        "manifest.json",
        r"artifacts\.0\.platform",
        "told where the target has one kind of artifact; others refuse to load",
    ),
    ("manifest.json", r"quantization\.(calibration|cost|reference_cost|auto|method)(\..*)?", TOLD),
    ("*", r"(.*\.)?extra|.*", "an unknown field is ignored, so that later versions can add some"),
)


def reason_of(mutant: Mutant) -> str | None:
    """Why an alteration cannot matter, or None if that is not known."""
    for file, place, reason in ACCEPTED[:-1]:
        if mutant.file == file and re.fullmatch(place, mutant.place):
            return reason
    if mutant.change == "a field added" and mutant.file.endswith(".json"):
        return ACCEPTED[-1][2]
    return None
