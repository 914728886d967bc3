"""Where a policy came from, and how its saved states say so: the weights that made them, and the precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.runtimes.protocol import short

WEIGHTS, PRECISION = "weights", "precision"
SIGNATURE = (WEIGHTS, PRECISION)
"""Entries of a saved state beside its tensors: the SHA-256 of the checkpoint's weights, and the letters of a precision,
both uint8, so that any ``.npz`` holds them, and who computes with all that is in a state finds numbers."""
SHOWN = 12
"""Hexadecimal digits that name weights in a message."""


@dataclass(frozen=True)
class Origin:
    """The bundle that a policy was loaded from, and what it takes to load it again.

    Attributes:
        path: the bundle's folder, absolute, through the links that were named.
        target: what runs.
        options: what else ``load_policy`` was told, by name.
        weights: SHA-256 of the checkpoint's weights, the same for all its targets and precisions; "": not known.
        precision: of what runs.
        digest: what tells what runs from anything else, one SHA-256; "": not known.
    """

    path: Path
    target: str
    options: Mapping[str, Any]
    weights: str
    precision: str
    digest: str = ""

    def signature(self) -> dict[str, NDArray[Any]]:
        """What says in a saved state whose it is: ``weights``, (32,), if they are known, and ``precision``."""
        known = {WEIGHTS: _bytes(bytes.fromhex(self.weights))} if self.weights else {}
        return {**known, PRECISION: _bytes(self.precision.encode())}


def check_signature(state: Mapping[str, NDArray[Any]], origin: Origin | None, *, force: bool) -> None:
    """Raise ValueError where a saved state is of other weights, unless forced; one that does not say so is taken.

    The precision is no reason: a run may go on at another one.
    """
    for name, size in ((WEIGHTS, 32), (PRECISION, None)):
        if name in state:
            value: object = state[name]
            plain = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 1
            if not plain or size not in (None, np.size(state[name])):
                expected = f"uint8 of shape ({size or 'N'},)"
                raise ValueError(f"{name}: expected {expected}, as state() gives it, got {short(value)}")
    if WEIGHTS not in state or origin is None or not origin.weights or force:
        return
    found = state[WEIGHTS].tobytes().hex()
    if found != origin.weights:
        raise ValueError(
            f"{WEIGHTS}: the state is of other weights, {found[:SHOWN]}, than this policy, {origin.weights[:SHOWN]}; "
            f"load_state(state, force=True) takes it all the same"
        )


def _bytes(values: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(values, np.uint8).copy()
