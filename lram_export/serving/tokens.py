"""Who may come in: tokens, one per line of a file that nobody else can read."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Sequence
from pathlib import Path

from lram_export.errors import UsageError
from lram_export.system.files import open_regular

LENGTHS = (16, 256)
MOST_TOKENS = 4096
_FORM = re.compile(rf"[!-~]{{{LENGTHS[0]},{LENGTHS[1]}}}")
MAKE_ONE = "make one with: openssl rand -hex 32"
SCHEME = "Bearer "


class Tokens:
    """The tokens that a server knows; none: everybody may come in."""

    def __init__(self, tokens: Sequence[str] = ()) -> None:
        self._digests = [_digest(token) for token in tokens]

    def __len__(self) -> int:
        return len(self._digests)

    def whose(self, authorization: str | None) -> int | None:
        """The number of the token in a header ``authorization``; 0 for all where no token is asked for; None: unknown.

        It takes as long whatever is wrong with a token, and wherever in the file it stands.
        """
        if not self._digests:
            return 0
        given = "" if authorization is None else authorization
        found, digest = None, _digest(given.removeprefix(SCHEME))
        for number, known in enumerate(self._digests):
            if hmac.compare_digest(known, digest):
                found = number
        return found if given.startswith(SCHEME) else None


def read_tokens(path: Path) -> tuple[str, ...]:
    """The tokens in a file, one per line; empty lines and lines that begin with # do not count.

    Raises:
        UsageError: it cannot be read, others than its owner can, or a line is no token.
    """
    try:
        with open_regular(path) as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MOST_TOKENS * (LENGTHS[1] + 1))
        lines = content.decode("ascii").splitlines()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: expected tokens in ASCII, one per line; {MAKE_ONE}") from None
    if mode & 0o077:
        raise UsageError(f"{path}: others than its owner may read or change it; run: chmod 600 {path}")
    found = []
    for number, line in enumerate(lines, 1):
        token = line.strip()
        if not token or token.startswith("#"):
            continue
        if not _FORM.fullmatch(token):
            low, high = LENGTHS
            raise UsageError(f"{path}: line {number}: expected a token of {low} to {high} letters, digits and signs")
        found.append(token)
    if not found:
        raise UsageError(f"{path}: expected a token per line, got none; {MAKE_ONE}")
    if len(set(found)) != len(found):
        raise UsageError(f"{path}: a token stands in it twice")
    return tuple(found)


def check_token(token: str) -> None:
    """Raise UsageError unless a text can be a token; never shows it."""
    if not _FORM.fullmatch(token):
        low, high = LENGTHS
        raise UsageError(f"token: expected {low} to {high} letters, digits and signs, got {len(token)} characters")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()
