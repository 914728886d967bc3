"""Writes a bundle, whole or not at all."""

from __future__ import annotations

import dataclasses
import datetime
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lram_export.bundle.bundle import BUNDLE_SUFFIX
from lram_export.bundle.digests import both_digests
from lram_export.bundle.manifest import MANIFEST_FILE, ArtifactEntry, FileEntry, Manifest, QuantizationEntry
from lram_export.spec.codes import BESIDE_MODEL, QUANTIZED_FILE, QUANTIZED_PLACES
from lram_export.spec.interface import Interface
from lram_export.spec.parity import ParityResult
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import StepSpec
from lram_export.system.files import atomic_directory


class BundleWriter:
    """Collects the parts of a bundle in a temporary folder; :meth:`finish` writes the manifest."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.name = directory, name
        self._created = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0).isoformat()
        self._artifacts: list[ArtifactEntry] = []

    def target_directory(self, target: str) -> Path:
        """Create and return the folder of a target; one that the quantized matrices lie in is there already."""
        directory = self.directory / target
        directory.mkdir(exist_ok=True)
        return directory

    def quantized_file(self, targets: Iterable[str]) -> Path:
        """Where the quantized matrices of a bundle for some targets go."""
        folder = self.target_directory(BESIDE_MODEL) if BESIDE_MODEL in targets else self.directory
        return folder / QUANTIZED_FILE

    def add_artifact(
        self,
        target: str,
        files: Iterable[Path],
        *,
        precision: str,
        platform: str,
        tools: dict[str, str],
        weight_bytes: int,
        activations: str,
        reads_codes: bool,
    ) -> None:
        """Record an artifact whose files lie in the target's folder."""
        entries = tuple(self.entry(file) for file in files)
        self._artifacts.append(
            ArtifactEntry(
                target, precision, platform, tools, entries, weight_bytes, activations, reads_codes=reads_codes
            )
        )

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets that were added and not discarded."""
        return tuple(a.target for a in self._artifacts)

    def discard(self, target: str) -> None:
        """Leave a target out, with whatever its folder holds but the quantized matrices, which others may read."""
        self._artifacts = [a for a in self._artifacts if a.target != target]
        folder = self.directory / target
        for path in folder.glob("*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != QUANTIZED_FILE:
                path.unlink()
        with suppress(OSError):  # there is none, or the matrices are in it
            folder.rmdir()

    def add_parity(
        self, target: str, parity: ParityResult, verified_by: str, tools: Mapping[str, str] | None = None
    ) -> None:
        """Record what verifying an artifact found, on the runtime of which target, and with which further tools."""

        def verified(artifact: ArtifactEntry) -> ArtifactEntry:
            known = {**artifact.tools, **(tools or {})}
            return dataclasses.replace(artifact, parity=parity, verified_by=verified_by, tools=known)

        self._artifacts = [verified(a) if a.target == target else a for a in self._artifacts]

    def finish(
        self,
        *,
        model: Mapping[str, Any],
        parameters: int,
        task: TaskSpec | None,
        spec: StepSpec,
        reference: Path,
        source: dict[str, str],
        quantization: QuantizationEntry | None = None,
        initial: Path | None = None,
        report: Path | None = None,
        interface: Interface | None = None,
    ) -> Manifest:
        """Write the manifest; may be called again after :meth:`add_parity`, and with the report made from it."""
        manifest = Manifest(
            name=self.name,
            model=model,
            parameters=parameters,
            task=task,
            spec=spec,
            reference=self.entry(reference),
            artifacts=tuple(self._artifacts),
            created=self._created,
            source=source,
            interface=Interface() if interface is None else interface,
            quantization=None if quantization is None else self._settled(quantization),
            initial=None if initial is None else self.entry(initial),
            report=None if report is None else self.entry(report),
        )
        (self.directory / MANIFEST_FILE).write_text(manifest.dumps(), encoding="utf-8")
        return manifest

    def _settled(self, quantization: QuantizationEntry) -> QuantizationEntry:
        """With the file in its place: that of a target that was left out since is none."""
        above, beside = QUANTIZED_PLACES
        if BESIDE_MODEL in self.targets:
            return quantization
        with suppress(FileNotFoundError):
            (self.directory / beside).rename(self.directory / above)
            (self.directory / BESIDE_MODEL).rmdir()
        return dataclasses.replace(quantization, file=dataclasses.replace(quantization.file, path=above))

    def entry(self, file: Path) -> FileEntry:
        """Path, digests and size of a file of the bundle."""
        with file.open("rb", buffering=0) as opened:
            size = os.fstat(opened.fileno()).st_size
            whole, pieces = both_digests(opened.fileno(), size)
        return FileEntry(file.relative_to(self.directory).as_posix(), whole, size, pieces)


@contextmanager
def write_bundle(path: Path, *, force: bool = False) -> Iterator[BundleWriter]:
    """Yield a writer whose bundle takes its name only when the block succeeds; raises UsageError if it exists."""
    with atomic_directory(path, marker=MANIFEST_FILE, force=force) as temporary:
        yield BundleWriter(temporary, path.name.removesuffix(BUNDLE_SUFFIX))
