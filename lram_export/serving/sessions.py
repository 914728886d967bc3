"""Whose a seat is: sessions, each of one robot, and what became of its last call.

Everything here belongs to the thread of the server's event loop, which asks and is never made to wait.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from asyncio import Future
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from lram_export.describe import counted
from lram_export.policy import Policy
from lram_export.serving.measures import Measures

ID_BYTES, SECRET_BYTES = 8, 24


class Refused(Exception):
    """A call that the server does not carry out: the name of gRPC's status code, and one line."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


@dataclass(eq=False)
class Session:
    """One robot on one row.

    ``answer`` is the answer of the call with ``number``, there or still to come; that of number 0 opened the session.
    """

    row: int
    token: int
    robot: str
    nonce: bytes
    outputs: tuple[str, ...]
    idle: float
    id: bytes = field(default_factory=lambda: secrets.token_bytes(ID_BYTES))
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(SECRET_BYTES))
    policy: Policy | None = None
    number: int = 0
    digest: bytes = b""
    answer: Future[bytes] | None = None
    seen: float = field(default_factory=time.monotonic)

    @property
    def credential(self) -> bytes:
        """What the robot shows at every call."""
        return self.id + self.secret

    @property
    def busy(self) -> bool:
        """Whether a call is being carried out."""
        return self.answer is not None and not self.answer.done()

    def call(self, number: int, data: bytes, begin: Callable[[], Future[bytes]], measures: Measures) -> Future[bytes]:
        """The answer to a call: what ``begin`` makes of the next one, and of the last one again what it was.

        Raises:
            Refused: another number than those two, another call under the last one's number, or the next while the
                last is being carried out.
        """
        self.seen = time.monotonic()
        if number == self.number and self.answer is not None and number > 0:
            if not hmac.compare_digest(self.digest, hashlib.sha256(data).digest()):
                raise Refused("FAILED_PRECONDITION", f"call {number} was another one; a robot numbers each once")
            measures.repeated += 1
            return self.answer
        if number != self.number + 1:
            raise Refused(
                "FAILED_PRECONDITION",
                f"expected call {self.number + 1}, or {self.number} once more, got call {number}: a call is missing, "
                f"or two robots use one session",
            )
        if self.busy:
            raise Refused("FAILED_PRECONDITION", f"call {self.number} is still being carried out; wait for its answer")
        self.answer = begin()
        self.number, self.digest = number, hashlib.sha256(data).digest()
        return self.answer


class Sessions:
    """All sessions, and the rows that nobody has."""

    def __init__(self, robots: int, per_token: int, idle: float, measures: Measures) -> None:
        self.robots, self.per_token, self.idle, self.measures = robots, per_token, idle, measures
        self._free = list(range(robots))[::-1]
        self._by_id: dict[bytes, Session] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def again(self, nonce: bytes, token: int) -> Session | None:
        """The session that an Open with this nonce has opened already; raises Refused where it is in use."""
        for session in self._by_id.values() if nonce else ():
            if session.nonce == nonce:
                if session.number or session.token != token:
                    raise Refused("ALREADY_EXISTS", "nonce: another session was opened with it; expected a random one")
                return session
        return None

    def open(self, token: int, robot: str, nonce: bytes, outputs: tuple[str, ...]) -> Session:
        """A new session on a free row; raises Refused where there is none."""
        if not self._free:
            raise Refused(
                "RESOURCE_EXHAUSTED",
                f"all seats are taken: this server has {self.robots}; one that is silent is free after {self.idle:g} s",
            )
        if sum(session.token == token for session in self._by_id.values()) >= self.per_token:
            raise Refused(
                "RESOURCE_EXHAUSTED",
                f"this token has {counted(self.per_token, 'seat')} already, as many as it may have",
            )
        session = Session(self._free.pop(), token, robot, nonce, outputs, self.idle)
        self._by_id[session.id] = session
        self.measures.sessions += 1
        return session

    def find(self, credential: bytes, token: int) -> Session:
        """The session that a robot shows; raises Refused, alike whatever is wrong with it."""
        session = self._by_id.get(credential[:ID_BYTES])
        known = secrets.token_bytes(SECRET_BYTES) if session is None else session.secret
        if not hmac.compare_digest(known, credential[ID_BYTES:]) or session is None or session.token != token:
            raise Refused(
                "NOT_FOUND",
                f"no such session: it was closed, was silent for more than {self.idle:g} s, or the server was started "
                f"anew; its state is gone, and an episode can begin on another seat",
            )
        return session

    def silent(self) -> list[Session]:
        """Those whose robots have been silent for too long."""
        latest = time.monotonic() - self.idle
        return [session for session in self if not session.busy and session.seen < latest]

    def forget(self, session: Session) -> bool:
        """Let nobody find a session any more; whether it was there. Its row is free after :meth:`free`."""
        return self._by_id.pop(session.id, None) is not None

    def free(self, session: Session) -> None:
        """Give the row of a forgotten session away."""
        self._free.append(session.row)
