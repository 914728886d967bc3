"""What `lram-export evaluate --json` printed, read again: how artifacts did in closed loop."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lram_export.episodes.intervals import Estimate, Mean
from lram_export.errors import UsageError


@dataclass(frozen=True)
class ClosedLoop:
    """One artifact in one environment.

    Attributes:
        artifact: its digest.
        environment: ``family/task``.
        episodes: how many were played.
        success: None where the environment does not tell.
        mean_return: None where the file has none.
        complete: whether no failure of the environment ended it early.
    """

    artifact: str
    environment: str
    episodes: int
    success: Estimate | None
    mean_return: Mean | None
    complete: bool


def read_evaluations(paths: Sequence[str | Path], known: Collection[str]) -> list[ClosedLoop]:
    """The results of artifacts whose digests are ``known``, in the order of the files.

    Raises:
        UsageError: a file that is none, or that has results of other artifacts only.
    """
    return [found for path in paths for found in _read(Path(path), known)]


def _read(path: Path, known: Collection[str]) -> list[ClosedLoop]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if "failures" in document:
            failed = set(document["failures"])
        else:  # of a version whose evaluation ended with the first one
            failed = set() if document["failure"] is None else {str(r["environment"]) for r in document["results"]}
        found = [_result(result, failed) for result in document["results"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"no '{error.args[0]}'" if isinstance(error, KeyError) else error
        raise UsageError(f"{path}: expected the JSON of lram-export evaluate --json ({what})") from None
    own = [result for result in found if result.artifact in known]
    if not own:
        raise UsageError(f"{path}: of no artifact of this report or bundle: other ones, or exported again since")
    return own


def _result(result: Mapping[str, Any], failed: Collection[str]) -> ClosedLoop:
    success, returned = result["success"], result.get("return")
    return ClosedLoop(
        artifact=str(result["artifact"]),
        environment=str(result["environment"]),
        episodes=len(result["episodes"]),
        success=None if success is None else Estimate(*(_finite(success[name]) for name in Estimate._fields)),
        mean_return=None
        if returned is None
        else Mean(_finite(returned["value"]), *(_bound(returned[name]) for name in ("low", "high"))),
        complete=str(result["environment"]) not in failed,
    )


def _bound(value: Any) -> float | None:
    return None if value is None else _finite(value)


def _finite(value: Any) -> float:
    if not math.isfinite(value):
        raise ValueError(f"expected finite numbers, got {value!r}")
    return float(value)
