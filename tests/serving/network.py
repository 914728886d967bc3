"""A network between robots and a server that loses connections when it is told to, and attackers on it."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

LONGEST_ACKNOWLEDGEMENT = 64
"""Bytes that HTTP/2 says beside an answer; an answer has more."""


class Network:
    """A TCP relay on the loopback interface."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.connections = 0
        self._open: list[socket.socket] = []
        self._lock, self._deaf = threading.Lock(), False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Lose all connections, and what is on the way."""
        with self._lock:
            for end in self._open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
            self._open.clear()

    def lose_the_next_answer(self) -> None:
        """Deliver what robots say, but lose the connection instead of the next thing that the server says."""
        self._deaf = True

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes who waits in it
        self._listening.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                robot, _ = self._listening.accept()
                self.connections += 1
                server = socket.create_connection(self._server)
                for end in (robot, server):  # what routers do not do: hold small packets back until others arrived
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._open += [robot, server]
                threading.Thread(target=self._pump, args=(robot, server, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, robot, True), daemon=True).start()

    def _pump(self, source: socket.socket, drain: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if answers and self._deaf and len(data) > LONGEST_ACKNOWLEDGEMENT:
                    self._deaf = False
                    self.cut()
                    return
                drain.sendall(data)
        with suppress(OSError):
            drain.shutdown(socket.SHUT_RDWR)


def say(port: int, data: bytes, seconds: float = 0.2) -> bytes:
    """What a server answers to these bytes, until it hangs up or the time is over."""
    found = b""
    with socket.create_connection(("127.0.0.1", port)) as end:
        end.settimeout(seconds)
        with suppress(OSError):
            end.sendall(data)
            while part := end.recv(1 << 16):
                found += part
    return found
