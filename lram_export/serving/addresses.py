"""Where a server listens, and how a robot names it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from lram_export.errors import UsageError

PORT = 8431
PLAIN, ENCRYPTED = "grpc://", "grpcs://"
_FORM = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


@dataclass(frozen=True)
class Address:
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine gets there: a loopback address, or the name of one."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @staticmethod
    def read(text: str, where: str, lowest_port: int = 1) -> Address:
        """From ``HOST:PORT``; raises UsageError."""
        match = _FORM.fullmatch(text)
        if match is None or not lowest_port <= int(match[2]) <= 65535:
            raise UsageError(f"{where}: expected HOST:PORT, such as 127.0.0.1:{PORT}, got '{text[:80]}'")
        return Address(match[1].strip("[]"), int(match[2]))


def read_url(url: str) -> tuple[Address, bool]:
    """The address in ``grpc://HOST:PORT`` or ``grpcs://HOST:PORT``, and whether it is encrypted; raises UsageError."""
    for scheme in (PLAIN, ENCRYPTED):
        if isinstance(url, str) and url.startswith(scheme):
            return Address.read(url.removeprefix(scheme).rstrip("/"), "url"), scheme == ENCRYPTED
    raise UsageError(f"url: expected grpcs://HOST:PORT, or grpc://HOST:PORT without TLS, got {str(url)[:80]!r}")
