"""Bundles of the Hugging Face Hub, ``hf://OWNER/NAME[@REVISION]``: fetched into the cache of `huggingface_hub`.

First the manifest, which says what a bundle is and which commit it is of; then the files it lists, of that commit, and
no others. They are compared with the manifest where any bundle's are: when they are used.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lram_export.bundle.manifest import MANIFEST_FILE, REPORT_FILE, read_manifest
from lram_export.errors import BundleError, HubError, UsageError
from lram_export.hub.address import Address
from lram_export.hub.client import asking, client, unreached
from lram_export.progress import SILENT, Progress
from lram_export.spec.json_fields import read_text

SECONDS = 10.0
"""How long the Hub may take to say which commit a branch is at."""


@dataclass(frozen=True)
class Fetched:
    """A bundle of the Hub on this machine.

    Attributes:
        path: its folder in the cache, which is of that commit and stays as it is.
        address: where it is from, at the commit.
        asked: where it was asked for.
        unreached: why the Hub was not reached, so that it is what the cache had; None: it was.
    """

    path: Path
    address: Address
    asked: Address
    unreached: str | None

    def __str__(self) -> str:
        """One line: which commit it is, where that was not said, and whether it may not be the newest."""
        cached = "" if self.unreached is None else f"; from the cache, since the Hub was not reached ({self.unreached})"
        return f"{self.asked}: commit {self.address.revision}{cached}"


class NoBundleError(UsageError):
    """A repository that holds something else."""


def local(path: str | Path) -> Path:
    """The folder of a bundle: of an address of the Hub, fetched; any other path as it is. Raises as :func:`fetch`."""
    address = Address.of(path)
    return Path(path) if address is None else fetch(address).path


def fetch(address: Address, progress: Progress = SILENT) -> Fetched:
    """A bundle of the Hub, all of one commit, as far as it is not in the cache yet.

    Where the Hub is not reached, what the cache has of the revision is taken. A commit that the cache has is taken
    without asking.

    Raises:
        UsageError: no such repository or revision, one that may not be seen, or one that holds no bundle.
        HubError: the Hub was not reached, and the cache has none of it or not all.
        BundleError: the manifest is damaged or of a newer version, or a file it lists is missing.
    """
    if address.file is not None:
        raise UsageError(f"{address}: a bundle is a repository as a whole; expected {Address(address.name)}[@REVISION]")
    hub = client(address)
    reason = None if address.is_pinned else _unreached(hub, address)
    path = _file(hub, address, MANIFEST_FILE, reason)
    if path is None:
        raise NoBundleError(f"{address}: no {MANIFEST_FILE} in it; expected a bundle, as lram-export push writes it")
    commit = address.at(path.parent.name)
    try:
        manifest = read_manifest(read_text(path))
    except ValueError as error:
        raise BundleError(f"{commit}: {MANIFEST_FILE}: {error}") from None
    with progress.stage(f"fetching {address}", sum(file.size for file in manifest.files)) as advance:
        for file in manifest.files:
            if _file(hub, commit, file.path, reason) is None:
                raise BundleError(f"{commit}: {file.path}: missing; the bundle is incomplete, push it again")
            advance(file.size)
        if manifest.report is not None:
            with suppress(HubError):  # nobody needs it to act
                _file(hub, commit, REPORT_FILE, reason)
    return Fetched(path.parent, commit, address, reason)


def _unreached(hub: Any, address: Address) -> str | None:
    """Why the Hub does not say whether it has a revision; None if it has. Raises UsageError where it has not."""
    with asking(address):
        try:
            hub.HfApi().model_info(address.name, revision=address.revision, timeout=SECONDS)
        except Exception as error:
            if (reason := unreached(error)) is None:
                raise
            return reason
    return None


def _file(hub: Any, address: Address, name: str, reason: str | None) -> Path | None:
    """A file of a repository, from the cache alone where the Hub was not reached; None if the repository has none."""
    errors = hub.errors
    with asking(address):
        try:
            return Path(
                hub.hf_hub_download(address.name, name, revision=address.revision, local_files_only=reason is not None)
            )
        except errors.LocalEntryNotFoundError as error:
            if reason is None:
                raise
            raise HubError(
                f"{address}: not in the cache, or not all of it, and the Hub was not reached ({reason})"
            ) from error
        except errors.EntryNotFoundError:
            return None
