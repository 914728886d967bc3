"""A bundle to the Hugging Face Hub: its files as the manifest lists them, and its card, in one commit or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lram_export.bundle.bundle import Bundle
from lram_export.bundle.manifest import MANIFEST_FILE, REPORT_FILE, Manifest, read_manifest
from lram_export.errors import UsageError, describe
from lram_export.hub.address import Address
from lram_export.hub.client import SIGN_IN, asking, client
from lram_export.progress import SILENT, Progress
from lram_export.sharing.card import CARD_FILE, LIBRARY, MARK
from lram_export.spec.json_fields import read_text
from lram_export.version import __version__


@dataclass(frozen=True)
class PushOptions:
    """How to push.

    Attributes:
        private: a repository that is made for it is seen by its owner only; one that is there has to be so.
        branch: where to commit; it is made if it is not there. None: the main branch.
        message: of the commit; None: says which bundle it is.
        pull_request: open one in place of committing.
    """

    private: bool = False
    branch: str | None = None
    message: str | None = None
    pull_request: bool = False


@dataclass(frozen=True)
class Pushed:
    """What was done.

    Attributes:
        address: of the bundle at its commit; of a pull request, at that.
        url: the page of the commit or of the pull request.
        made: whether the repository was made for it.
        removed: files of the bundle that was there before, which this one has not.
        card_kept: whether the repository has a card of its own, which was left as it is.
    """

    address: Address
    url: str
    made: bool
    removed: tuple[str, ...]
    card_kept: bool


@dataclass(frozen=True)
class _There:
    """A branch as it is: its commit, and which files it has."""

    commit: str
    files: frozenset[str]


def files_to_push(bundle: Bundle) -> dict[str, int]:
    """Path in the repository -> bytes, of a bundle's files that are here: without a report that was left out."""
    listed = {file.path: file.size for file in bundle.manifest.files}
    report = bundle.manifest.report
    if report is not None and (bundle.path / REPORT_FILE).is_file():
        listed[REPORT_FILE] = report.size
    return {MANIFEST_FILE: (bundle.path / MANIFEST_FILE).stat().st_size, **listed}


def push(
    bundle: Bundle, to: Address, card: str, options: PushOptions | None = None, progress: Progress = SILENT
) -> Pushed:
    """Check a bundle's files, and commit them with its card. Of a bundle that was there before nothing is left.

    Raises:
        BundleError: the bundle is damaged.
        UsageError: no package, no token, or one that may not write there; a repository of something else, or that is
            public where a private one was asked for; no such branch to open a pull request for.
        HubError: the Hub was not reached, or failed. Nothing was committed.
    """
    options = options or PushOptions()
    files = files_to_push(bundle)
    with progress.stage("checking hashes", sum(file.size for file in bundle.manifest.files)) as advance:
        bundle.check_report()
        bundle.check_files(bundle.manifest.files, advance)
    hub = client(to)
    with asking(to):
        if hub.get_token() is None:
            raise UsageError(f"{to}: pushing needs a token that may write there; {SIGN_IN}")
        api = hub.HfApi(library_name=LIBRARY, library_version=__version__)
        made = _make(api, hub, to, options)
        there = _branch(api, hub, to, options)
        before = _bundle_there(hub, to, there)
        keeps = _has_own_card(hub, to, there)
        removed = sorted(_paths(before) & there.files - set(files)) if before is not None else []
        operations = [
            *(hub.CommitOperationAdd(path, str((bundle.path / path).resolve())) for path in files),
            *(() if keeps else (hub.CommitOperationAdd(CARD_FILE, card.encode()),)),
            *(hub.CommitOperationDelete(path) for path in removed),
        ]
        with progress.stage(f"uploading {sum(files.values()):,} bytes to {to}"):
            commit = api.create_commit(
                to.name,
                operations,
                commit_message=options.message or f"{bundle.manifest.name} at {bundle.manifest.precision}",
                revision=options.branch,
                create_pr=options.pull_request,
                parent_commit=there.commit,
            )
    if options.pull_request:
        return Pushed(to.at(commit.pr_revision), str(commit.pr_url), made, tuple(removed), keeps)
    return Pushed(to.at(commit.oid), str(commit.commit_url), made, tuple(removed), keeps)


def _make(api: Any, hub: Any, to: Address, options: PushOptions) -> bool:
    """Make the repository where there is none; whether there was none."""
    try:
        found = api.model_info(to.name)
    except hub.errors.GatedRepoError:
        raise
    except hub.errors.RepositoryNotFoundError:
        if options.pull_request:
            raise
        api.create_repo(to.name, private=options.private or None)
        return True
    if options.private and not found.private:
        raise UsageError(
            f"{to}: is public, and --private is for a repository that is made; change it in its settings, or push "
            f"without --private"
        )
    return False


def _branch(api: Any, hub: Any, to: Address, options: PushOptions) -> _There:
    """The branch to commit to, made of the main one where there is none."""
    try:
        found = api.model_info(to.name, revision=options.branch)
    except hub.errors.RevisionNotFoundError:
        if options.pull_request or options.branch is None:
            raise
        api.create_branch(to.name, branch=options.branch)
        found = api.model_info(to.name, revision=options.branch)
    return _There(found.sha, frozenset(file.rfilename for file in found.siblings or ()))


def _bundle_there(hub: Any, to: Address, there: _There) -> Manifest | None:
    """The manifest of the bundle in the repository, if there is one; raises UsageError for one of another kind."""
    if MANIFEST_FILE not in there.files:
        return None
    try:
        return read_manifest(read_text(Path(hub.hf_hub_download(to.name, MANIFEST_FILE, revision=there.commit))))
    except ValueError as error:
        raise UsageError(
            f"{to}: its {MANIFEST_FILE} is no bundle's ({describe(error)}), and would be lost; choose another one"
        ) from None


def _has_own_card(hub: Any, to: Address, there: _There) -> bool:
    """Whether the repository has a card that somebody wrote, or has made their own."""
    if CARD_FILE not in there.files:
        return False
    written = Path(hub.hf_hub_download(to.name, CARD_FILE, revision=there.commit)).read_bytes()
    return MARK.encode() not in written


def _paths(manifest: Manifest) -> set[str]:
    report = () if manifest.report is None else (manifest.report.path,)
    return {*(file.path for file in manifest.files), *report}
