"""A robot's connection to a server: calls with a deadline, sent again where the connection fails."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from lram_export.errors import RemoteError, UsageError
from lram_export.serving.addresses import ENCRYPTED, read_url
from lram_export.serving.deadlines import Deadline
from lram_export.serving.limits import MOST_MESSAGE
from lram_export.serving.messages import SERVICE, message, parse
from lram_export.serving.stream import OverdueError, Stream, StreamLostError
from lram_export.serving.tokens import SCHEME, check_token

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
"""Seconds before a call is sent again for the second time, each twice as long as the one before. The first time it is
at once: most often only the connection was lost."""


class SessionLostError(RemoteError):
    """The server knows nothing of the session: its state is gone."""


class NotReachedError(RemoteError):
    """Nobody knows whether the call arrived."""


class Connection:
    """Calls of one robot. The connection is made when it is needed, and again when it is lost."""

    def __init__(self, url: str, token: str | None, ca: str | Path | None, retries: int, insecure: bool) -> None:
        """See :class:`~lram_export.serving.client.RemotePolicy`."""
        address, encrypted = read_url(url)
        if token is not None:
            check_token(token)
            if not (encrypted or address.is_local or insecure):
                raise UsageError(
                    f"url: {url} would carry the token where others read it; use {ENCRYPTED}, or insecure=True"
                )
        if ca is not None and not encrypted:
            raise UsageError(f"ca: only with {ENCRYPTED}, got {url}")
        self.url, self.retries = url, retries
        self._metadata = () if token is None else (("authorization", SCHEME + token),)
        options = [
            ("grpc.max_receive_message_length", MOST_MESSAGE),
            ("grpc.max_send_message_length", MOST_MESSAGE),
            ("grpc.enable_retries", 0),  # they are made here
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 500),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.use_local_subchannel_pool", 1),  # a robot, a connection
        ]
        self._channel: Any
        if encrypted:
            self._channel = grpc.secure_channel(str(address), grpc.ssl_channel_credentials(_certificates(ca)), options)
        else:
            self._channel = grpc.insecure_channel(str(address), options)
        self._calls: dict[str, Any] = {}
        self._steps = Stream(partial(self._channel.stream_stream(f"/{SERVICE}/Steps"), metadata=self._metadata))

    def call(self, method: str, data: bytes, deadline: Deadline) -> Any:
        """The answer to a message, which may arrive more than once.

        Raises:
            NotReachedError: no answer; the call may have arrived.
            SessionLostError: the server knows nothing of the session.
            RemoteError: the server refused the call.
        """
        pause = 0.0
        for left in range(self.retries, -1, -1):
            try:
                return parse(message(f"{method}Answer"), self._sent(method, data, deadline))
            except OverdueError:
                raise self._overdue(deadline.seconds) from None
            except StreamLostError:
                if left == 0 or pause >= deadline.left:
                    raise NotReachedError(f"{self.url}: not reached: the server hung up") from None
            except grpc.RpcError as error:
                lost = error.code() is grpc.StatusCode.UNAVAILABLE
                if not lost or left == 0 or pause >= deadline.left:
                    raise self._told(error, deadline.seconds) from None
            except ValueError as error:
                raise RemoteError(f"{self.url}: {error}; is it another server?") from None
            time.sleep(pause)
            pause = min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE)
        raise AssertionError("the last attempt ends the loop")

    def _sent(self, method: str, data: bytes, deadline: Deadline) -> bytes:
        """The answer to a message that is sent once; raises grpc.RpcError, StreamLostError."""
        if method == "Step":
            return self._steps.call(data, deadline)
        if method not in self._calls:
            self._calls[method] = self._channel.unary_unary(f"/{SERVICE}/{method}")
        return bytes(self._calls[method](data, timeout=deadline.left, metadata=self._metadata))

    def _overdue(self, seconds: float) -> NotReachedError:
        return NotReachedError(f"{self.url}: no answer within {seconds:g} s")

    def _told(self, error: Any, seconds: float) -> RemoteError:
        """What gRPC says, as an error of ours."""
        code, details = error.code(), " ".join(str(error.details()).split())[:300]
        if code is grpc.StatusCode.NOT_FOUND:
            return SessionLostError(f"{self.url}: {details}")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self._overdue(seconds)
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN):
            return NotReachedError(f"{self.url}: not reached: {details}")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return RemoteError(f"{self.url}: no policy server, or one of another version: {details}")
        return RemoteError(f"{self.url}: {details}")

    def close(self) -> None:
        """Hang up."""
        self._steps.close()
        self._channel.close()


def _certificates(ca: str | Path | None) -> bytes | None:
    if ca is None:
        return None
    try:
        found = Path(ca).read_bytes()
    except OSError as error:
        raise UsageError(f"ca: {ca}: cannot be read: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in found:
        raise UsageError(f"ca: {ca}: expected certificates in PEM")
    return found
