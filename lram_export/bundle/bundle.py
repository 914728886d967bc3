"""Bundles: the folder an export writes, and the reader a robot uses. Free of torch.

``NAME.lram/`` holds ``manifest.json``, ``reference.npz`` and one folder per target. A reader checks the
manifest, refuses paths that leave the folder, checks sizes and hashes, and never unpickles.

Names are refused, links are followed: whoever wrote the manifest must not choose what is read, whoever put the folder
here may, as package managers and build tools do. What a link leads to is a file with the manifest's hash, or an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.artifact import LoadedArtifact
from lram_export.bundle.digests import both_digests, pieces_sha256
from lram_export.bundle.fetching import local
from lram_export.bundle.initial import read_initial
from lram_export.bundle.manifest import MANIFEST_FILE, REPORT_FILE, ArtifactEntry, FileEntry, Manifest, read_manifest
from lram_export.errors import BundleError, UsageError
from lram_export.hub.cache import is_cached
from lram_export.spec.codes import QuantizedFile
from lram_export.spec.json_fields import read_text
from lram_export.system.files import NoFileError, open_regular, stream_sha256
from lram_export.system.threads import beside

BUNDLE_SUFFIX = ".lram"
PIECES_DIFFER = "content differs from the manifest's SHA-256 of its pieces"


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its checked manifest. File contents are checked when they are used."""

    path: Path
    manifest: Manifest

    @staticmethod
    def open(path: str | Path) -> Bundle:
        """Read and check the manifest of a folder, or of an address of the Hugging Face Hub, which is fetched.

        Raises:
            UsageError: there is no such folder, or no such address.
            HubError: the Hub was not reached.
            BundleError: not a bundle, damaged, or written by a newer version.
        """
        path = local(path)
        if not path.exists():
            raise UsageError(f"{path}: no such bundle")
        manifest_path = path / MANIFEST_FILE
        if not manifest_path.is_file():
            raise BundleError(f"{path}: no {MANIFEST_FILE} in it; expected a bundle written by lram-export")
        try:
            return Bundle(path, read_manifest(read_text(manifest_path)))
        except (ValueError, OSError) as error:
            raise BundleError(f"{manifest_path}: {error}") from None

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets this bundle has artifacts for."""
        return tuple(entry.target for entry in self.manifest.artifacts)

    def artifact(self, target: str) -> ArtifactEntry:
        """The artifact of a target; raises UsageError naming those the bundle has."""
        for entry in self.manifest.artifacts:
            if entry.target == target:
                return entry
        raise UsageError(
            f"{self.path}: no artifact for target '{target}'; it has: {', '.join(self.targets)}. Export again with "
            f"--target {target}, if lram-export doctor lists it"
        )

    def artifact_size(self, target: str) -> int:
        """Bytes on disk that a target needs: its own files, and the shared ones that it reads."""
        return self.artifact(target).size + sum(file.size for file in self._shared(target))

    def read_by(self, target: str) -> tuple[str, ...]:
        """Names of the files that a target is run from: the manifest, its own and the shared ones that it reads."""
        return (MANIFEST_FILE, *(file.path for file in (*self.artifact(target).files, *self._shared(target))))

    def _shared(self, target: str) -> list[FileEntry]:
        """The files beside its own that a target reads."""
        manifest = self.manifest
        codes = manifest.quantization.file if manifest.quantization is not None else None
        reads = codes if self.artifact(target).reads_codes else None
        return [file for file in (reads, manifest.initial) if file is not None]

    def artifact_digest(self, target: str) -> str:
        """What tells what a target runs from anything else: one SHA-256 over its files and the shared codes."""
        shared = self.manifest.quantization
        if shared is None:
            return self.artifact(target).digest
        return hashlib.sha256(f"{self.artifact(target).digest} {shared.file.loaded_by}".encode()).hexdigest()

    def load_artifact(
        self, target: str, batch: int | None = None, threads: int = 1, *, thorough: bool = False
    ) -> LoadedArtifact:
        """Check the files a target reads, by so many threads, and describe them to its runtime, for a number of rows
        (default: as many as it was exported for); raises BundleError.

        Every byte is compared, with one digest of each file; ``thorough``: with all that the manifest has of it.
        """
        files = [*self.artifact(target).files, *self._shared(target)]
        if thorough:
            self.check_files(files)
        else:
            self._check_quickly(files, threads)
        return self._described(target, batch)

    @contextmanager
    def loading(self, target: str, batch: int | None = None, threads: int = 1) -> Iterator[LoadedArtifact]:
        """:meth:`load_artifact` around the block that opens the artifact, for a reader that no damage can harm.

        The target's own files are compared while the block runs: what else they are than files of the manifest's sizes
        is known when it has ended without an error. One that is not as listed is that error, whatever the block raised.
        """
        self._check_quickly(self._shared(target), threads)
        with ExitStack() as stack:
            files = [(file, stack.enter_context(self._opened(file))) for file in self.artifact(target).files]

            def compare() -> None:
                for file, opened in files:
                    with self._errors_named(file):
                        _check_quickly(opened, file, threads)

            with beside(compare):
                yield self._described(target, batch)

    def _described(self, target: str, batch: int | None) -> LoadedArtifact:
        """What a runtime is told of a target's files, whoever checks them."""
        entry, manifest = self.artifact(target), self.manifest
        quantized = None
        if manifest.quantization is not None and entry.reads_codes:
            codes = manifest.quantization
            quantized = QuantizedFile(self.path / codes.file.path, codes.matrices)
        return LoadedArtifact(
            directory=self.path / target,
            spec=manifest.spec if batch is None else manifest.spec.with_batch(batch),
            exported_batch=manifest.batch_size,
            model=manifest.model,
            task=manifest.task,
            digest=entry.digest,
            activations=entry.activations,
            quantized=quantized,
            platforms=entry.platforms,
            identity=manifest.identity,
            files=frozenset(PurePosixPath(f.path).relative_to(target).as_posix() for f in entry.files),
            initial=self.initial_tensors(),
            interface=manifest.interface,
            state_format="" if entry.parity is None else entry.parity.state_format,
        )

    def initial_tensors(self) -> dict[str, NDArray[np.float32]]:
        """The states that start as a tensor, each for one row; raises BundleError naming the tensor."""
        if self.manifest.initial is None:
            return {}
        return read_initial(self.path / self.manifest.initial.path, self.manifest.spec)

    def check_files(
        self, entries: Iterable[FileEntry] | None = None, advance: Callable[[int], None] | None = None
    ) -> None:
        """Compare files with the manifest's sizes and all its digests; raises BundleError naming the file.

        The default is all files, and the report if it is there.
        """
        if entries is None:
            self.check_report()
        for entry in self.files() if entries is None else entries:
            with self._opened(entry) as file, self._errors_named(entry):
                _check_thoroughly(file, entry, advance)

    def _check_quickly(self, entries: Iterable[FileEntry], threads: int) -> None:
        for entry in entries:
            with self._opened(entry) as file, self._errors_named(entry):
                _check_quickly(file, entry, threads)

    @contextmanager
    def _opened(self, entry: FileEntry) -> Iterator[io.FileIO]:
        """A file of the bundle, which is one, and of the manifest's size; raises BundleError."""
        with ExitStack() as stack:
            with self._errors_named(entry):
                file = stack.enter_context(open_regular(self.path / entry.path))
                _check_size(file, entry)
            yield file

    @contextmanager
    def _errors_named(self, entry: FileEntry) -> Iterator[None]:
        """What is wrong with a file as a BundleError."""
        path = self.path / entry.path
        try:
            yield
        except FileNotFoundError:
            raise BundleError(f"{path}: missing; the bundle is incomplete, {self._again(path)}") from None
        except NoFileError as error:
            raise BundleError(f"{path}: expected a file, got {error}; {self._again(path)}") from None
        except OSError as error:
            raise BundleError(f"{path}: cannot be read: {error.strerror}; {self._again(path)}") from None
        except ValueError as error:
            raise BundleError(f"{path}: {error}; {self._again(path)}") from None

    def _again(self, path: Path) -> str:
        """What to do about a file that is not as it should be; of a link, also where it leads."""
        with suppress(OSError, RuntimeError):  # links in a circle lead nowhere
            leads, folder = path.resolve(), self.path.resolve()
            if is_cached(path, folder):
                return f"remove {leads} from the cache of Hugging Face, and fetch the bundle again"
            if not leads.is_relative_to(folder):
                return (
                    f"it is a link out of the bundle, to {leads}, which is no copy of this file; "
                    f"copy the bundle with what its links lead to: cp -rL"
                )
        return "copy or export it again"

    def check_report(self) -> None:
        """Raise BundleError if there is a report other than the one the manifest lists: it is what gets signed.

        None at all is fine: a robot needs none, and :meth:`load_artifact` does not ask.
        """
        path, listed = self.path / REPORT_FILE, self.manifest.report
        if not os.path.lexists(path):
            return
        if listed is None:
            raise BundleError(f"{path}: not listed in the manifest, so nobody vouches for it; remove it")
        self.check_files([listed])

    def files(self) -> tuple[FileEntry, ...]:
        """All files the manifest lists and a robot needs: without the report."""
        return self.manifest.files


def _check_size(file: io.FileIO, entry: FileEntry) -> None:
    size = os.fstat(file.fileno()).st_size
    if size != entry.size:
        raise ValueError(f"{size} bytes, the manifest says {entry.size}")


def _check_quickly(file: io.FileIO, entry: FileEntry, threads: int) -> None:
    """Compare all of a file by the digest that takes the least time; raises ValueError."""
    if entry.pieces_sha256 is None:
        _check_thoroughly(file, entry)
    elif pieces_sha256(file.fileno(), entry.size, threads) != entry.pieces_sha256:
        raise ValueError(PIECES_DIFFER)
    _check_size(file, entry)  # it may have grown meanwhile


def _check_thoroughly(file: io.FileIO, entry: FileEntry, advance: Callable[[int], None] | None = None) -> None:
    """Compare all of a file by every digest that the manifest has of it; raises ValueError."""
    if entry.pieces_sha256 is None:
        whole, pieces = stream_sha256(file, advance), None
    else:
        whole, pieces = both_digests(file.fileno(), entry.size, advance)
    if whole != entry.sha256:
        raise ValueError("content differs from the manifest's SHA-256")
    if pieces != entry.pieces_sha256:
        raise ValueError(PIECES_DIFFER)
    _check_size(file, entry)
