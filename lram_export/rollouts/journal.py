"""A file of results that grows while an evaluation is played, so that whoever was interrupted goes on where it ended.

The first line says what all results come from, every other line is what a seed of an environment gave; JSON each. The
numbers are written so that they are read again to the bit.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from lram_export.bundle.bundle import Bundle
from lram_export.errors import LramError, UsageError
from lram_export.rollouts.playing import EvaluationJob, SeedOutcome, SeedTask
from lram_export.rollouts.reference import ReferenceSource
from lram_export.rollouts.results import REFERENCE, Agreement, EpisodeResult, EvaluationOptions, Played
from lram_export.system.files import file_sha256
from lram_export.version import __version__

SUFFIX = ".jsonl"
FORMAT = 1
_OF_THE_RUN = ("environments", "episodes", "seed", "parallel", "optional", "patience")
"""Options that say how much is played, and by how many; of what a seed gives they change nothing."""
_OF_THIS_MACHINE = ("LRAM_CACHE_DIR", "LRAM_CLUSTER_CACHE")


class Journal:
    """What was played before, and what is played now; see :func:`open_journal`."""

    def __init__(self, path: Path, file: TextIO, outcomes: dict[SeedTask, SeedOutcome], policies: int) -> None:
        self.path, self.kept = path, len(outcomes)
        self._file, self._outcomes, self._policies = file, outcomes, policies

    def outcome(self, task: SeedTask) -> SeedOutcome | None:
        """What a seed gave, if it was played to its end."""
        return self._outcomes.get(task)

    def keep(self, task: SeedTask, outcome: SeedOutcome) -> None:
        """Write what a seed gave, unless it failed: then it is played again next time."""
        if outcome.failure is not None or len(outcome.played) < self._policies:
            return
        document = {"environment": task[0], "seed": task[1], "played": [dataclasses.asdict(p) for p in outcome.played]}
        self._file.write(json.dumps(document, default=_number) + "\n")
        self._file.flush()
        self._outcomes[task] = outcome


def identity(bundle: Bundle, options: EvaluationOptions, reference: ReferenceSource | None) -> dict[str, Any]:
    """What the result of a seed depends on, as plain JSON values."""
    settings = {f.name: getattr(options, f.name) for f in dataclasses.fields(options) if f.name not in _OF_THE_RUN}
    found: dict[str, Any] = {
        "format": FORMAT,
        "bundle": {target: bundle.artifact_digest(target) for target in options.targets},
        "reference": _reference(bundle, reference),
        "options": settings,
        "versions": {
            "Python": platform.python_version(),
            "lram-export": __version__,
            **EvaluationJob(bundle.path, options, reference, {}).versions(),
        },
        "variables": {k: v for k, v in os.environ.items() if k.startswith("LRAM_") and k not in _OF_THIS_MACHINE},
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, default=_plain))
    return plain


@contextmanager
def open_journal(
    path: Path, made_with: Mapping[str, Any], *, force: bool = False, replace: bool = False
) -> Iterator[Journal]:
    """Make the file, or go on with what is in it; with ``force`` anew. It is this process's alone.

    Args:
        path: the file.
        made_with: the :func:`identity` of what is played.
        force: forget what is in it.
        replace: forget what is in it if that comes from something else.

    Raises:
        UsageError: it is something else, its results come from something else, or another process writes it.
    """
    path.touch()
    with path.open("r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{path}: another evaluation writes it; wait for it or choose another --results") from None
        try:
            outcomes = {} if force else _read(path, file, made_with)
        except LramError:
            if not replace:
                raise
            outcomes = {}
        if not outcomes:
            file.seek(0)
            file.truncate()
            file.write(json.dumps(made_with) + "\n")
            file.flush()
        policies = len(made_with["bundle"]) + (made_with["reference"] is not None)
        yield Journal(path, file, outcomes, policies)


def _read(path: Path, file: TextIO, made_with: Mapping[str, Any]) -> dict[SeedTask, SeedOutcome]:
    """What is in the file, which then ends where its last whole line ends."""
    first = file.readline()
    if not first:
        return {}
    try:
        header = json.loads(first)
        different = [name for name in made_with if header[name] != made_with[name]]
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"{path}: no results of an evaluation; choose another --results, or add --force to replace it"
        ) from None
    if different:
        raise UsageError(
            f"{path}: holds results with other {_what(different[0], header, made_with)}; choose another --results, or "
            f"add --force to start anew"
        )
    found: dict[SeedTask, SeedOutcome] = {}
    end = len(first.encode())
    with suppress(ValueError):  # the last line, if its writer was killed
        for line in iter(file.readline, ""):
            document = json.loads(line)
            if not line.endswith("\n"):
                break
            try:
                found[document["environment"], document["seed"]] = SeedOutcome(tuple(map(_played, document["played"])))
            except (KeyError, TypeError, AttributeError):
                raise LramError(f"{path}: line {len(found) + 2}: not as an evaluation writes it; add --force") from None
            end += len(line.encode())
    file.seek(end)
    file.truncate()
    return found


def _what(name: str, header: Mapping[str, Any], made_with: Mapping[str, Any]) -> str:
    """Which part differs, in words."""
    there, here = header[name], made_with[name]
    if isinstance(there, dict) and isinstance(here, dict):
        part = next(part for part in sorted({*there, *here}) if there.get(part) != here.get(part))
        values = [
            value if len(str(value)) < 40 else f"{str(value)[:12]}..." for value in (there.get(part), here.get(part))
        ]
        return f"{name} ({part}: {values[0]}, now {values[1]})"
    return name


def _reference(bundle: Bundle, reference: ReferenceSource | None) -> Any:
    if reference is None:
        return None
    paths = [path / name for path, names in reference.found_here().reads().items() for name in names or ("",)]
    if not paths:
        return bundle.artifact_digest("pytorch") if "pytorch" in bundle.targets else REFERENCE
    return {path.name: file_sha256(path) for path in paths}


def _played(document: Mapping[str, Any]) -> Played:
    agreement = document["agreement"]
    return Played(
        document["policy"],
        EpisodeResult(**document["episode"]),
        None if agreement is None else Agreement(**agreement),
        document["policy_seconds"],
        document["environment_seconds"],
    )


def _number(value: Any) -> Any:
    """A number of numpy's as one of Python's."""
    return value.item()


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)
