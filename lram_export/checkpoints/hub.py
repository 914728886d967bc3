"""Checkpoints of the Hugging Face Hub, as ``hf://OWNER/NAME``: fetched into the cache of `huggingface_hub`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from lram_export.checkpoints.containers import INDEX_SUFFIX, STANDARD_FILES
from lram_export.checkpoints.folder import CONFIG_FILE
from lram_export.errors import UsageError
from lram_export.hub.address import SCHEME, Address, could_be_name
from lram_export.hub.client import asking, client

RUN_CONFIG = ".hydra/config.yaml"


def fetched(path: Path) -> Path:
    """The file or folder of an address ``hf://OWNER/NAME[@REVISION][/FILE]`` on this machine; any other path as it is.

    Only what a checkpoint may need is fetched: the file and what lies beside it under the names of the formats, or of a
    repository as a whole its standard files. Without a network what was fetched before is taken. A slash in a revision
    is written as %2F.

    Raises:
        UsageError: the package is missing, or the Hub has no such thing.
        HubError: it was not reached, and nothing was fetched before.
    """
    address = Address.of(path)
    if address is None:
        return path
    hub, file = client(address), address.file
    with asking(address):
        folder = Path(
            hub.snapshot_download(address.name, revision=address.revision, allow_patterns=wanted(address.file))
        )
    if file is not None and not (folder / file).exists():
        raise UsageError(f"{address}: the repository has no such file")
    if file is None and not any((folder / name).is_file() for name in STANDARD_FILES):
        raise UsageError(f"{address}: none of {', '.join(STANDARD_FILES)} is there: say which file, {address}/FILE")
    return folder / (file or "")


def wanted(file: str | None) -> list[str]:
    """Which names of a repository belong to a file, or to its checkpoint as a whole."""
    if file is None:
        return sorted({name for standard in STANDARD_FILES for name in wanted(standard)})
    place = PurePosixPath(file)
    names = [file, *(str(folder / RUN_CONFIG) for folder in (place.parent, place.parent.parent))]
    if file.endswith(INDEX_SUFFIX):
        whole = PurePosixPath(file.removesuffix(INDEX_SUFFIX))
        names.append(f"{whole.with_suffix('')}-?????-of-?????{whole.suffix}")
    if place.name in STANDARD_FILES:
        names.append(str(place.parent / CONFIG_FILE))
    return sorted(set(names))


def hint(path: Path) -> str:
    """For a path that does not exist: how it would be asked of the Hub, if it may be a name there."""
    could_be = could_be_name(str(path)) and not path.parent.exists() and not path.suffix[1:].isalpha()
    return f" (of the Hugging Face Hub: {SCHEME}{path})" if could_be else ""
