"""A bundle in another format: written, replayed beside the policy itself, and only then given its name."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lram_export.bundle.bundle import Bundle
from lram_export.conversion.formats import Format, Options, Player, find_format
from lram_export.conversion.replay import Replayed, replay
from lram_export.progress import SILENT, Progress
from lram_export.system.files import atomic_directory, atomic_file, check_output


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        path: the file or folder.
        format: its format.
        size: bytes on disk.
        inputs: what a user gives with every step.
        outputs: what comes out for the robot.
        states: what a user hands back.
        replayed: what the comparison with the policy found.
    """

    path: Path
    format: str
    size: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    states: tuple[str, ...]
    replayed: Replayed

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "output": str(self.path),
            "format": self.format,
            "bytes": self.size,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "states": list(self.states),
            **self.replayed.to_json(),
        }


def convert_bundle(
    path: Path,
    to: str,
    output: Path,
    options: Options | None = None,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> Converted:
    """Write a bundle in another format, whole or not at all.

    Args:
        path: the bundle.
        to: a name of :data:`~lram_export.conversion.formats.FORMATS`.
        output: file or folder, as the format says.
        options: what else is asked.
        force: replace what is at ``output``.
        progress: told about the stages.

    Raises:
        UsageError: an unknown format or option, an output that exists, or a policy that the format cannot take.
        BundleError: a damaged bundle.
        ParityError: what was written does not act as the policy does; nothing is left of it.
    """
    asked = options or Options()
    form = find_format(to)
    asked.check(to, form.OPTIONS)
    check_output(output, force=force, marker=form.marker(output))
    bundle = Bundle.open(path)
    with _written_to(output, form, force) as temporary:
        with progress.stage(f"writing {to}"):
            opening = form.write(bundle, temporary, asked)
        player = opening()
        found = replay(bundle, player, progress)
        size = sum(file.stat().st_size for file in (temporary, *temporary.rglob("*")) if file.is_file())
    return _converted(output, to, size, player, found)


def _written_to(output: Path, form: Format, force: bool) -> AbstractContextManager[Path]:
    marker = form.marker(output)
    if marker is None:
        return atomic_file(output, force=force)
    return atomic_directory(output, marker=marker, force=force)


def _converted(output: Path, to: str, size: int, player: Player, found: Replayed) -> Converted:
    return Converted(output, to, size, player.inputs, player.outputs, player.states, found)
