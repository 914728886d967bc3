"""What a loop and a robot's process say to each other over a stream socket: small messages of one form.

A message is a header of 40 bytes, little endian, and then its values, float32:

======  ======== ==================================================================================================
offset  type     what it is
======  ======== ==================================================================================================
0       2 bytes  ``L1``: this protocol, its first version
2       uint8    :class:`Kind`
3       uint8    bits 0 to 3: :class:`State` of the robot; of a refusal bits 4 to 7: its :class:`Reason`
4       uint32   number of values
8       uint32   episode: another number than before means that another episode has begun
12      uint64   number of the message, counted by its sender from 1
20      uint64   what it is about: of an answer the number of the question, of an ACT that of the newest READING
28      int64    when it was sent, ns of the sender's monotonic clock: for logs, comparable on one machine only
36      float32  reward since the last TAKEN; NaN: not known
======  ======== ==================================================================================================

The loop asks and the robot answers, so a reading is never older than its question: neither side needs the other's
clock. There is one question at a time. An answer that comes after its question was given up is told by its number, and
dropped; a question that another one follows was given up, and is neither obeyed nor answered.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HEADER = struct.Struct("<2sBBIIQQqf")
MAGIC = b"L1"
MOST_VALUES = 65_536
NOTHING: NDArray[np.float32] = np.zeros(0, np.float32)
UNKNOWN = float("nan")


class Kind(IntEnum):
    """What a message is: a question of the loop, or an answer of the robot."""

    RESET = 1
    """Go to where an episode begins; answered by a READING."""
    OBSERVE = 2
    """Answered by a READING."""
    ACT = 3
    """Do this; answered by TAKEN, or REFUSED."""
    HOLDS = 4
    """What do the motors hold? Answered by HELD."""
    STOP = 5
    """Stop the motors; answered by STOPPED."""
    READING = 16
    TAKEN = 17
    HELD = 18
    STOPPED = 19
    REFUSED = 20


KINDS = frozenset(Kind)


class State(IntFlag):
    """How the robot is, in each of its answers."""

    DONE = 1
    """Its episode has ended, and the next has not begun."""
    STILL = 2
    """Its motors are stopped."""


MOVING = State(0)


class Reason(IntEnum):
    """Why something was refused."""

    TOO_OLD = 1
    """The reading that the action was chosen by is too old, by the robot's clock."""
    SIZE = 2
    """Another number of values than the robot has motors."""
    NOT_FINITE = 3
    BETWEEN_EPISODES = 4
    STOPPED = 5
    """The motors stopped by themselves: they take no action before HOLDS or RESET was asked."""
    ANOTHER_LOOP_COMMANDS = 6
    """The connection ends with it; the number that it is about is 0, that of no question."""


class WireError(ConnectionError):
    """What came is not of this protocol: the connection is of no use any more."""


@dataclass(frozen=True)
class Message:
    """One message; see the table above."""

    kind: Kind
    number: int
    about: int = 0
    values: NDArray[np.float32] = field(default_factory=lambda: NOTHING)
    state: State = MOVING
    reason: int = 0
    episode: int = 0
    reward: float = UNKNOWN
    sent: int = 0

    def packed(self) -> bytes:
        """As bytes, with the time as it is now."""
        values = np.ascontiguousarray(self.values, "<f4").ravel()
        state, now = self.state | self.reason << 4, time.monotonic_ns()
        numbers = (state, len(values), self.episode, self.number, self.about, now, self.reward)
        return HEADER.pack(MAGIC, self.kind, *numbers) + values.tobytes()


class Line:
    """A connection. What came of a message that is not whole yet is kept for the next :meth:`receive`."""

    def __init__(self, connection: socket.socket) -> None:
        """``connection`` is closed by :meth:`close`."""
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small messages, each at once
        self._socket, self._came = connection, bytearray()

    @classmethod
    def connected(cls, address: str, seconds: float) -> Line:
        """To a robot that listens at ``unix:PATH`` or ``tcp:HOST:PORT``; raises OSError, within so many seconds."""
        family, where = _parsed(address)
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(seconds)
            connection.connect(where)
        except OSError as error:
            connection.close()
            number = error.errno or errno.ETIMEDOUT
            raise OSError(number, os.strerror(number), address) from None
        except BaseException:
            connection.close()
            raise
        return cls(connection)

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    def send(self, message: Message, deadline: float) -> None:
        """Raises ConnectionError where it does not get away by then, seconds of `time.monotonic`."""
        self._socket.settimeout(_left(deadline))
        try:
            self._socket.sendall(message.packed())
        except (TimeoutError, BlockingIOError):  # a part of it may have been sent
            raise ConnectionAbortedError("the other side reads nothing") from None

    def receive(self, deadline: float) -> Message:
        """The next message.

        Raises:
            TimeoutError: none was whole by then.
            ConnectionError: the other side is gone, or does not speak this protocol.
        """
        while (message := self._next()) is None:
            self._socket.settimeout(_left(deadline))
            try:
                came = self._socket.recv(65_536)
            except BlockingIOError:
                raise TimeoutError("nothing came") from None
            if not came:
                raise ConnectionResetError("the other side is gone")
            self._came += came
        return message

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()

    def _next(self) -> Message | None:
        if len(self._came) < HEADER.size:
            return None
        magic, kind, state, count, episode, number, about, sent, reward = HEADER.unpack_from(self._came)
        if magic != MAGIC or kind not in KINDS or count > MOST_VALUES:
            raise WireError(f"expected a message of {MAGIC.decode()}, got {bytes(self._came[:4])!r}, {count} values")
        end = HEADER.size + 4 * count
        if len(self._came) < end:
            return None
        values = np.frombuffer(bytes(self._came[HEADER.size : end]), "<f4")
        del self._came[:end]
        return Message(Kind(kind), number, about, values, State(state & 15), state >> 4, episode, reward, sent)


def listening(address: str) -> socket.socket:
    """A socket that waits for a loop at ``unix:PATH`` or ``tcp:HOST:PORT``; raises OSError."""
    family, where = _parsed(address)
    if family == socket.AF_UNIX and Path(str(where)).is_socket() and not _answers(address):
        Path(str(where)).unlink()  # left by a process that was killed
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    return listener


def _answers(address: str) -> bool:
    try:
        Line.connected(address, 1.0).close()
    except ConnectionRefusedError:
        return False
    return True


def _parsed(address: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    scheme, _, where = address.partition(":")
    host, _, port = where.rpartition(":")
    if scheme == "unix" and where:
        return socket.AF_UNIX, where
    if scheme == "tcp" and host and port.isdecimal():
        return socket.AF_INET, (host, int(port))
    raise OSError(f"{address}: expected unix:PATH or tcp:HOST:PORT")


def _left(deadline: float) -> float:
    """Seconds until then; 0, so not blocking, where it is over: what has come already may still be read."""
    return max(0.0, deadline - time.monotonic())
