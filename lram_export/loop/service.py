"""What a service tells systemd: that it is ready, that it lives, that it stops. Without systemd it tells nobody.

The protocol is a datagram to a socket that the environment names (sd_notify(3)).
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress


class Notifier:
    """Tells whoever started this process how it is."""

    def __init__(self) -> None:
        """Read what the environment says, which systemd sets."""
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) if address else None
        # twice as often as it must be, as its manual says; only where the process that is watched is this one
        mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._every = int(os.environ.get("WATCHDOG_USEC", "0") or 0) / 2e6 if mine else 0.0
        self._last = float("-inf")

    def ready(self) -> None:
        """The loop runs."""
        self._tell("READY=1")

    def alive(self) -> None:
        """A step was made; told no more often than the watchdog wants it."""
        if self._every:
            now = time.monotonic()
            if now - self._last >= self._every:
                self._last = now
                self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """The motors are about to be stopped."""
        self._tell("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._tell(f"STATUS={text}")

    def _tell(self, text: str) -> None:
        if self._socket is not None:
            with suppress(OSError):  # nobody listens, or its queue is full: no reason to be late
                self._socket.sendto(text.encode(), self._address)
