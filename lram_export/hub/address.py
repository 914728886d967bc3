"""Addresses of the Hugging Face Hub: ``hf://OWNER/NAME[@REVISION][/FILE]``."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from lram_export.errors import UsageError

SCHEME = "hf://"
_ADDRESS = re.compile(r"hf:/+(?P<name>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<file>.+?))?/*")
"""A path has one slash where the scheme had two."""
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_MOST_NAME = 96
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Address:
    """A repository of models, or a file in it, at a revision: branch, tag or commit; None: its main branch."""

    name: str
    revision: str | None = None
    file: str | None = None

    @staticmethod
    def of(path: str | Path) -> Address | None:
        """The address that a path is; None where it is none. A slash in a revision is written as %2F."""
        found = _ADDRESS.fullmatch(str(path))
        if found is None:
            return None
        revision = found["revision"]
        return Address(found["name"], None if revision is None else unquote(revision), found["file"])

    def __str__(self) -> str:
        """As a user writes it."""
        revision = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        return f"{SCHEME}{self.name}{revision}" + ("" if self.file is None else f"/{self.file}")

    def at(self, revision: str | None) -> Address:
        """The same at another revision."""
        return dataclasses.replace(self, revision=revision)

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a whole commit, which is the same files for ever."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None


def is_address(path: str | Path) -> bool:
    """Whether a path is an address of the Hub."""
    return Address.of(path) is not None


def could_be_name(text: str) -> bool:
    """Whether a text looks like OWNER/NAME."""
    return _NAME.fullmatch(text) is not None


def repository_named(text: str) -> Address:
    """A repository to write to, ``OWNER/NAME`` with or without the scheme; raises UsageError for anything else."""
    found = Address.of(text if text.startswith(SCHEME) else f"{SCHEME}{text}")
    odd = ("--", "..", "-/", "./")
    name = "" if found is None or found != Address(found.name) else found.name
    if not could_be_name(name) or len(name) > _MOST_NAME or any(o in f"{name}/" for o in odd) or name.endswith(".git"):
        raise UsageError(
            f"'{text}': no name of a repository on the Hugging Face Hub; expected OWNER/NAME of letters, digits, '-', "
            f"'_' and '.', at most {_MOST_NAME} of them"
        )
    return Address(name)
