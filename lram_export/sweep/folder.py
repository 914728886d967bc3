"""A sweep's folder: one bundle per precision, and for every cell of the grid what each step gave.

``results/PRECISION-TARGET.json`` keeps, next to each result, everything the result was made with. A result counts
only as long as that is what would be used now, so an interrupted or repeated sweep does just what is missing.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lram_export.bundle.bundle import BUNDLE_SUFFIX
from lram_export.errors import LramError, UsageError
from lram_export.sweep.grid import Cell
from lram_export.system.files import atomic_file, check_output, clear_stale

MARKER = "sweep.json"
"""Says what the folder is a sweep of."""
RESULTS = "results"


@dataclass(frozen=True)
class Outcome:
    """What one step gave for one cell: a result of plain JSON values, or a line that says why there is none."""

    made_with: dict[str, Any]
    result: dict[str, Any] | None = None
    failure: str | None = None


class SweepFolder:
    """Reads and writes the results of a sweep; see :func:`open_sweep`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def bundle(self, precision: str) -> Path:
        """Where the bundle of a precision lies."""
        return self.path / f"{precision}{BUNDLE_SUFFIX}"

    def outcome(self, cell: Cell, step: str) -> Outcome | None:
        """What a step gave when it was last tried, whatever it was made with."""
        return self._read(cell).get(step)

    def done(self, cell: Cell, step: str, made_with: Mapping[str, Any]) -> dict[str, Any] | None:
        """The result of a step that did not fail and was made with just this, else None."""
        outcome = self.outcome(cell, step)
        return outcome.result if outcome is not None and outcome.made_with == _plain(made_with) else None

    def keep(self, cell: Cell, step: str, outcome: Outcome) -> None:
        """Write what a step gave."""
        steps = {**self._read(cell), step: outcome}
        document = {**asdict(cell), "steps": {name: asdict(value) for name, value in steps.items()}}
        (self.path / RESULTS).mkdir(exist_ok=True)
        _write(self._file(cell), document)

    def journal(self, cell: Cell, environment: str) -> Path:
        """Where the episodes of a cell in an environment are written while not all are played."""
        (self.path / RESULTS).mkdir(exist_ok=True)
        return self.path / RESULTS / f"{cell.precision}-{cell.target}.{environment.replace('/', '_')}.jsonl"

    def _file(self, cell: Cell) -> Path:
        return self.path / RESULTS / f"{cell.precision}-{cell.target}.json"

    def _read(self, cell: Cell) -> dict[str, Outcome]:
        try:
            steps = json.loads(self._file(cell).read_text(encoding="utf-8"))["steps"]
            return {name: Outcome(**value) for name, value in steps.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # not there, or damaged: it is done again


def check_sweep(path: Path, *, force: bool) -> None:
    """Refuse a folder that a sweep can neither make, nor go on in, nor (with ``force``) replace; before long work.

    Raises:
        UsageError: naming the folder and what to do.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path}: is a file; expected the folder of a sweep, or none")
    goes_on = (path / MARKER).is_file() or (path.is_dir() and not any(path.iterdir()))
    if force or not path.exists():
        check_output(path, force=force, marker=MARKER)
    elif not goes_on:
        raise UsageError(f"{path}: is not the folder of a sweep (no {MARKER} in it); choose another --output")


@contextmanager
def open_sweep(path: Path, identity: Mapping[str, Any], *, force: bool) -> Iterator[SweepFolder]:
    """Make the folder, go on in it, or (with ``force``) empty it; it is ours alone as long as the block lasts.

    ``identity`` says what is swept; nothing in the folder may come from anything else.

    Raises:
        UsageError: the folder is a sweep of something else, or another process is at work in it.
        LramError: its marker cannot be read.
    """
    check_sweep(path, force=force)
    path.mkdir(exist_ok=True)
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{path}: another sweep is at work here; wait for it or choose another --output") from None
        if force:
            _empty(path)
        if (path / MARKER).is_file():
            _check_identity(path / MARKER, _plain(identity))
        clear_stale(path)
        _write(path / MARKER, identity)
        yield SweepFolder(path)
    finally:
        os.close(handle)


def _check_identity(marker: Path, identity: Mapping[str, Any]) -> None:
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
        differing = [name for name in identity if found[name] != identity[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LramError(f"{marker}: not readable ({error}); add --force to start anew") from None
    if differing:
        raise UsageError(
            f"{marker.parent}: is a sweep of another {differing[0].replace('_', ' ')}; "
            f"choose another --output, or add --force to replace it"
        )


def _empty(path: Path) -> None:
    for found in path.glob("*"):
        if found.is_dir() and not found.is_symlink():
            shutil.rmtree(found)
        else:
            found.unlink()


def _write(path: Path, document: Mapping[str, Any]) -> None:
    with atomic_file(path, force=True) as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _plain(value: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(value))
