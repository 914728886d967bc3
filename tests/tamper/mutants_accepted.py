"""Alterations that cannot matter, each with the reason: what they change decides nothing that a robot does."""

from __future__ import annotations

import re

from tests.tamper.mutations import Mutant

TOLD = "told to people, used for nothing"
BUILT = "for TensorRT on the GPU, where `compile` verifies what it builds; here the graph that it is built from is"
ACCEPTED = (
    (r"manifest\.json", r"created|generator|source\.file", TOLD),
    (r"manifest\.json", r"artifacts\.0\.tools(\..*)?", TOLD),
    (r"manifest\.json", r"artifacts\.0\.(parity.*|verified_by)", "what export found; verify finds it anew"),
    (r"manifest\.json", r"artifacts\.0\.weight_bytes", "predicts speed and memory, within four times the files"),
    (
        r"manifest\.json",
        r"artifacts\.0\.platform",
        "told where artifacts are of one kind, else it decides what loads",
    ),
    (r"manifest\.json", r"quantization\.(calibration|auto|method)(\..*)?", TOLD),
    (
        r"manifest\.json",
        r"quantization\.(cost|reference_cost)\.[a-z_]+",
        "verify --checkpoint measures it again, within what sums of another order may change",
    ),
    (r".*", r"((property |identity\.)?lram\.generator|artifacts\.0\.generator)", TOLD),
    (r"tensorrt/.*\.plan", r".*", BUILT),
    (
        r"tensorrt/recipe\.json",
        r"(workspace_bytes|memory_bytes|device|compute_capability|optimization_level|timing_cache|tf32|engines.*)",
        BUILT,
    ),
    (r"tvm/interface\.json", r"(matrices|epsilons).*", "for who compiles the kernels anew; the library has its own"),
)
"""File, place, reason. What is not here is accepted only if it is measured to change no logit beyond the tolerance."""
ADDED = "an unknown field is ignored, so that later versions can add some"


def reason_of(mutant: Mutant) -> str | None:
    """Why an alteration cannot matter, or None if that is not known."""
    for file, place, reason in ACCEPTED:
        if re.fullmatch(file, mutant.file) and re.fullmatch(place, mutant.place):
            return reason
    return ADDED if mutant.change == "a field added" and mutant.file.endswith(".json") else None
