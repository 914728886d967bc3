"""Checkpoints of the Hugging Face Hub, as ``hf://OWNER/NAME``: fetched into the cache of `huggingface_hub`."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from lram_export.checkpoints.containers import INDEX_SUFFIX, STANDARD_FILES
from lram_export.checkpoints.folder import CONFIG_FILE
from lram_export.errors import UsageError, describe

SCHEME = "hf://"
ADDRESS = re.compile(r"hf:/+(?P<name>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<file>.+?))?/*")
"""What a path looks like that began with :data:`SCHEME`: a path has one slash where there were two."""
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
RUN_CONFIG = ".hydra/config.yaml"
EXTRA = "hub"


def is_address(path: Path) -> bool:
    """Whether a path is an address of the Hub."""
    return ADDRESS.fullmatch(str(path)) is not None


def fetched(path: Path) -> Path:
    """The file or folder of an address ``hf://OWNER/NAME[@REVISION][/FILE]`` on this machine; any other path as it is.

    Only what a checkpoint may need is fetched: the file and what lies beside it under the names of the formats, or of a
    repository as a whole its standard files. Without a network what was fetched before is taken. A slash in a revision
    is written as %2F.

    Raises:
        UsageError: the package is missing, the Hub has no such thing, or it cannot be reached.
    """
    address = ADDRESS.fullmatch(str(path))
    if address is None:
        return path
    shown = f"{SCHEME}{str(path).removeprefix('hf:').lstrip('/')}"
    if find_spec("huggingface_hub") is None:
        raise UsageError(
            f"{shown}: needs the package huggingface_hub. Install it with: pip install 'lram-export[{EXTRA}]'"
        )
    from huggingface_hub import snapshot_download

    file, revision = address["file"], address["revision"]
    try:
        folder = Path(
            snapshot_download(
                address["name"],
                revision=None if revision is None else unquote(revision),
                allow_patterns=wanted(file),
            )
        )
    except Exception as error:  # it has a dozen types, for no network, no such repository, no right to see it
        raise UsageError(f"{shown}: not fetched from the Hugging Face Hub: {describe(error)}") from None
    if file is not None and not (folder / file).exists():
        raise UsageError(f"{shown}: the repository has no such file")
    if file is None and not any((folder / name).is_file() for name in STANDARD_FILES):
        raise UsageError(f"{shown}: none of {', '.join(STANDARD_FILES)} is there: say which file, {shown}/FILE")
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
    could_be = HUB_NAME.fullmatch(str(path)) and not path.parent.exists() and not path.suffix[1:].isalpha()
    return f" (of the Hugging Face Hub: {SCHEME}{path})" if could_be else ""
