"""The service: gRPC on one side, sessions and their policies on the other.

One thread runs the event loop, which talks to robots and never computes; another one makes all steps. Other calls are
carried out by threads of a pool, which may wait for that one. So a robot that sends half a message, or nothing, holds
no thread.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from lram_export.bundle.bundle import Bundle
from lram_export.errors import LramError, UsageError
from lram_export.observations import observations_of
from lram_export.origin import Origin
from lram_export.policy import Policy, choices, default_target
from lram_export.serving.addresses import ENCRYPTED, PLAIN, PORT, Address
from lram_export.serving.batching import Batcher
from lram_export.serving.calls import StepCall, answered
from lram_export.serving.description import Description
from lram_export.serving.limits import MOST_MESSAGE, NONCE_BYTES
from lram_export.serving.measures import Measures
from lram_export.serving.messages import HEALTH_SERVICE, METHODS, PROTOCOL, SERVICE, message, parse
from lram_export.serving.rows import open_rows
from lram_export.serving.seats import Seat
from lram_export.serving.sessions import Refused, Session, Sessions
from lram_export.serving.streams import Streams
from lram_export.serving.tokens import Tokens
from lram_export.spec.bounds import MOST_ROBOTS
from lram_export.system.machine import suitable_threads

LOG = logging.getLogger("lram_export.serving")
LOOPBACK = Address("127.0.0.1", PORT)
RECEIVE_SECONDS = 5.0
"""In which the rest of a message has to come when its call has."""
GRACE_SECONDS = 5.0
"""In which calls that are being carried out end when the server is stopped."""


@dataclass(frozen=True)
class ServerOptions:
    """How to serve.

    Attributes:
        bundle: its folder.
        target: what runs; default: the bundle's first that runs here.
        threads: of the runtime; default: by the model.
        address: where to listen; port 0: any that is free.
        robots: seats.
        window: seconds that a step waits for those of other robots; 0: none.
        idle: seconds that a robot may be silent before its seat is given away.
        tokens: those of the robots that may come in; none: any may.
        per_token: seats that robots with one token may have.
        certificate: PEM file of the server's certificate, and those up to its authority.
        key: PEM file of the certificate's key.
        insecure: whether to listen where others than this machine get to, though without tokens or without encryption.
    """

    bundle: Path
    target: str | None = None
    threads: int | None = None
    address: Address = LOOPBACK
    robots: int = 32
    window: float = 0.0
    idle: float = 60.0
    tokens: tuple[str, ...] = ()
    per_token: int = MOST_ROBOTS
    certificate: Path | None = None
    key: Path | None = None
    insecure: bool = False

    def credentials(self) -> grpc.ServerCredentials | None:
        """For TLS; None without. Raises UsageError where they are no good, or the address asks for more."""
        if (self.certificate is None) != (self.key is None):
            raise UsageError("--certificate, --key: give both, or none")
        lacks = [] if self.tokens else ["--token-file"]
        lacks += [] if self.certificate else ["--certificate and --key"]
        if lacks and not self.address.is_local and not self.insecure:
            raise UsageError(
                f"--listen {self.address}: others than this machine get there, so it needs {' and '.join(lacks)}; "
                f"--insecure does without"
            )
        if self.certificate is None or self.key is None:
            return None
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(self.certificate, self.key)
            pair = self.key.read_bytes(), self.certificate.read_bytes()
        except (OSError, ssl.SSLError) as error:
            reason = getattr(error, "reason", None) or error.strerror or str(error)
            raise UsageError(f"{self.certificate}, {self.key}: no certificate and its key, in PEM: {reason}") from None
        return grpc.ssl_server_credentials([pair])


class PolicyServer:
    """Serves a bundle from :meth:`start` to :meth:`stop`.

    Attributes:
        description: of what is served.
        address: where it listens, from :meth:`start` on.
        measures: how it went so far.
    """

    def __init__(self, options: ServerOptions) -> None:
        """Open the bundle, with a row for every robot.

        Raises:
            UsageError: options that do not fit one another, or as :func:`lram_export.policy.load_policy`.
            LramError: as :func:`lram_export.policy.load_policy`.
        """
        self.options, self.address, self.measures = options, options.address, Measures()
        self._credentials = options.credentials()
        self._tokens = Tokens(options.tokens)
        bundle = Bundle.open(options.bundle)
        target = options.target or default_target(bundle)
        manifest, precision = bundle.manifest, bundle.artifact(target).precision
        together = options.robots if target == "native" else 1
        threads = options.threads or suitable_threads(manifest.parameters, together)
        digest = bundle.artifact_digest(target)
        loaded: dict[str, Any] = {"threads": threads, "batch": 1, "spin": False}
        self._origin = Origin(bundle.path.absolute(), target, loaded, manifest.source["sha256"], precision, digest)
        self._values, self._initial = choices(bundle), bundle.initial_tensors()
        # threads that look for work would take the cores of those that talk to robots
        rows = open_rows(bundle, target, options.robots, threads, spin=False)
        self.description = Description(
            digest, manifest.name, target, precision, rows.spec, manifest.task, manifest.interface
        )
        self.threads = threads
        self._batcher = Batcher(rows, options.window, self.measures)
        self._sessions = Sessions(options.robots, options.per_token, options.idle, self.measures)
        self._streams = Streams(RECEIVE_SECONDS, options.idle)
        self._pool = ThreadPoolExecutor(options.robots + 2, "lram-export calls")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="lram-export server", daemon=True)
        self._made: list[tuple[asyncio.Future[bytes], bytes]] = []
        self._handing = threading.Lock()
        self._serving = False

    @property
    def url(self) -> str:
        """What robots call it."""
        return f"{PLAIN if self._credentials is None else ENCRYPTED}{self.address}"

    def start(self) -> None:
        """Listen; raises UsageError where that is not possible."""
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        except BaseException:
            self._end()
            raise

    def stop(self, grace: float = GRACE_SECONDS) -> None:
        """Take no more calls, finish those that are being carried out, free everything. Safe to call twice."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._stop(grace), self._loop).result()
            self._end()

    def __enter__(self) -> PolicyServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._pool.shutdown()
        self._batcher.close()
        self._batcher.rows.close()

    async def _start(self) -> None:
        options = [
            ("grpc.so_reuseport", 0),  # else a second server on this port would get half of the robots
            ("grpc.max_receive_message_length", self._most_received()),
            ("grpc.max_send_message_length", MOST_MESSAGE),
            ("grpc.max_metadata_size", 8192),
            ("grpc.max_concurrent_streams", 16),
            ("grpc.max_allowed_incoming_connections", 4 * self.options.robots + 64),
            ("grpc.server_handshake_timeout_ms", 5000),
            ("grpc.max_connection_idle_ms", 300_000),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),
        ]
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((_Handlers(self._answer, self._steps, self._health),))
        try:
            if self._credentials is None:
                port = self._server.add_insecure_port(str(self.address))
            else:
                port = self._server.add_secure_port(str(self.address), self._credentials)
        except RuntimeError:
            port = 0
        if port == 0:
            await self._server.stop(None)
            raise UsageError(f"--listen {self.address}: not possible: is the port in use, and the host this machine's?")
        self.address = Address(self.address.host, port)
        await self._server.start()
        self._serving = True
        self._watch = asyncio.create_task(self._watch_sessions())

    async def _stop(self, grace: float) -> None:
        self._serving = False
        self._watch.cancel()
        await self._streams.end()
        await self._server.stop(grace)
        for session in self._sessions:
            await self._leave(session)

    def _most_received(self) -> int:
        """Bytes of the largest message that makes sense: a step's or a state's."""
        spec = self.description.spec
        observed = 8 * sum(tensor.size for tensor in observations_of(spec))
        return min(max(observed, spec.state_bytes) + 128 * len(spec.states) + (1 << 16), MOST_MESSAGE)

    async def _answer(self, method: str, context: Any) -> bytes:
        """A call from its headers to its answer."""
        try:
            token = self._token(context)
            return await self._answered(method, token, await self._received(context))
        except Refused as refused:
            await context.abort(getattr(grpc.StatusCode, refused.code), refused.text)
            raise  # never: abort raises

    async def _steps(self, context: Any) -> None:
        """A stream of steps, each answered before the next is read."""
        try:
            token = self._token(context)
            with self._streams.opened(context) as stream:
                while (data := await stream.read()) is not None:
                    await context.write(await self._answered("Step", token, data))
        except Refused as refused:
            await context.abort(getattr(grpc.StatusCode, refused.code), refused.text)

    async def _answered(self, method: str, token: int, data: bytes) -> bytes:
        """The answer to a message; raises Refused."""
        began = time.perf_counter()
        try:
            request = parse(message(f"{method}Request"), data)
        except ValueError as error:
            self.measures.malformed += 1
            raise Refused("INVALID_ARGUMENT", str(error)) from None
        if method == "Open":
            return await self._open(token, request)
        if method == "Close":
            return await self._close(token, request)
        answer = await self._call(method, token, request, data)
        if method == "Step":
            self.measures.answered.append(time.perf_counter() - began)
        return answer

    def _token(self, context: Any) -> int:
        """The number of the robot's token; raises Refused before anything of its message is read."""
        said = [value for name, value in context.invocation_metadata() if name == "authorization"]
        whose = self._tokens.whose(str(said[0]) if len(said) == 1 else None)
        if whose is None:
            self.measures.turned_away += 1
            raise Refused("UNAUTHENTICATED", "expected the token of a robot: authorization: Bearer TOKEN")
        return whose

    async def _received(self, context: Any) -> bytes:
        """The message of a call; raises Refused where none comes in time."""
        try:
            data = await asyncio.wait_for(context.read(), RECEIVE_SECONDS)
        except asyncio.TimeoutError:
            data = None
        except asyncio.CancelledError:
            self.measures.malformed += 1
            raise
        if isinstance(data, bytes):
            return data
        self.measures.malformed += 1
        raise Refused("INVALID_ARGUMENT", f"expected a message within {RECEIVE_SECONDS:g} s")

    async def _open(self, token: int, request: Any) -> bytes:
        session = self._opened(token, request)
        assert session.answer is not None
        try:
            return await asyncio.shield(session.answer)
        except LramError as error:
            await self._leave(session)
            raise Refused("INTERNAL", str(error)) from None

    def _opened(self, token: int, request: Any) -> Session:
        if request.protocol != PROTOCOL:
            raise Refused(
                "FAILED_PRECONDITION",
                f"protocol: this server speaks {PROTOCOL}, the robot {request.protocol}; update one of the two",
            )
        if len(request.nonce) not in (0, NONCE_BYTES):
            raise Refused("INVALID_ARGUMENT", f"nonce: expected {NONCE_BYTES} bytes, got {len(request.nonce)}")
        if len(request.robot) > 100 or not request.robot.isprintable():
            raise Refused("INVALID_ARGUMENT", "robot: expected a name of at most 100 printable characters")
        here = self.description.bundle
        if request.bundle not in ("", here):
            raise Refused(
                "FAILED_PRECONDITION",
                f"bundle: the robot expects {request.bundle[:12]!r}, this server has '{here[:12]}', "
                f"{self.description.name} for {self.description.target}",
            )
        known = [tensor.name for tensor in self.description.spec.outputs]
        odd = [name for name in request.outputs if name not in known]
        if odd:
            raise Refused("INVALID_ARGUMENT", f"outputs: expected some of {', '.join(known)}, got {odd[0][:40]!r}")
        session = self._sessions.again(bytes(request.nonce), token)
        if session is None:
            wanted = tuple(name for name in known if not request.outputs or name in request.outputs)
            session = self._sessions.open(token, request.robot, bytes(request.nonce), wanted)
            self._batcher.taken = len(self._sessions)
            session.answer = self._loop.run_in_executor(self._pool, self._seated, session)
            LOG.info("robot '%s' sits on seat %d, %d taken", session.robot, session.row, len(self._sessions))
        return session

    def _seated(self, session: Session) -> bytes:
        """Make the policy of a session: its answer."""
        seat = Seat(self._batcher, session.row, self._initial)
        said = self.description
        session.policy = Policy(seat, said.task, self._origin, said.interface, self._values)
        answer = message("OpenAnswer")(
            session=session.credential, description=said.text(), idle_seconds=self.options.idle
        )
        return bytes(answer.SerializeToString())

    async def _call(self, method: str, token: int, request: Any, data: bytes) -> bytes:
        session = self._sessions.find(bytes(request.session), token)
        if method == "Step":
            begin = partial(self._stepped, session, request)
        else:
            begin = partial(self._loop.run_in_executor, self._pool, self._worked, method, session, request)
        answer = session.call(request.number, data, begin, self.measures)
        return await asyncio.shield(answer)  # a robot that goes away meanwhile may ask again

    def _worked(self, method: str, session: Session, request: Any) -> bytes:
        answer = answered(method, session, request)
        session.seen = time.monotonic()
        return answer

    def _stepped(self, session: Session, request: Any) -> asyncio.Future[bytes]:
        """The answer to a step, which the batcher's thread will make."""
        future: asyncio.Future[bytes] = self._loop.create_future()

        def done(answer: bytes, refused: bool) -> None:
            self.measures.steps += 1
            self.measures.refused += refused
            session.seen = time.monotonic()
            with self._handing:
                self._made.append((future, answer))
                first = len(self._made) == 1
            if first:  # else the loop is awake already
                self._loop.call_soon_threadsafe(self._hand_out)

        assert session.policy is not None  # it was opened: calls are numbered from 1 on
        self._batcher.want(StepCall(session.row, session, session.policy, request, done))
        return future

    def _hand_out(self) -> None:
        """Give the answers of the batcher's thread to who waits for them, all that there are."""
        with self._handing:
            made, self._made = self._made, []
        for future, answer in made:
            future.set_result(answer)

    async def _close(self, token: int, request: Any) -> bytes:
        with suppress(Refused):  # it is closed
            await self._leave(self._sessions.find(bytes(request.session), token))
        return bytes(message("CloseAnswer")().SerializeToString())

    async def _leave(self, session: Session) -> None:
        """End a session when its last call has ended, and give its seat away."""
        if not self._sessions.forget(session):
            return
        self._batcher.taken = len(self._sessions)
        if session.answer is not None:
            await asyncio.wait([session.answer])
        if session.policy is not None:
            await self._loop.run_in_executor(self._pool, session.policy.close)
        self._sessions.free(session)
        LOG.info("robot '%s' left seat %d, %d taken", session.robot, session.row, len(self._sessions))

    async def _watch_sessions(self) -> None:
        """Give the seats of silent robots away, and hang up on them."""
        while True:
            await asyncio.sleep(min(self.options.idle / 4, 1.0))
            for session in self._sessions.silent():
                LOG.info("robot '%s' was silent for %g s", session.robot, self.options.idle)
                await self._leave(session)
                self.measures.expired += 1
            await self._streams.end_silent()

    async def _health(self, context: Any) -> bytes:
        """gRPC's own health check, which probes make without a token."""
        try:
            request = parse(message("HealthCheckRequest", "grpc.health.v1"), await self._received(context))
        except (Refused, ValueError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if request.service not in ("", SERVICE):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"expected '{SERVICE}' or none")
        status = 1 if self._serving else 2
        return bytes(message("HealthCheckResponse", "grpc.health.v1")(status=status).SerializeToString())


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds what answers a call by its path. Messages are read by the server itself, so that it can stop waiting."""

    def __init__(
        self,
        answer: Callable[[str, Any], Coroutine[Any, Any, bytes]],
        steps: Callable[[Any], Coroutine[Any, Any, None]],
        health: Callable[[Any], Coroutine[Any, Any, bytes]],
    ) -> None:
        self._handlers = {
            f"/{HEALTH_SERVICE}/Check": _unary(health),
            f"/{SERVICE}/Steps": _stream(steps),
            **{f"/{SERVICE}/{method}": _unary(partial(answer, method)) for method in METHODS},
        }

    def service(self, handler_call_details: Any) -> Any:
        """See the base class."""
        return self._handlers.get(handler_call_details.method)


def _unary(answer: Callable[[Any], Coroutine[Any, Any, bytes]]) -> Any:
    async def handle(_: object, context: Any) -> bytes:
        return await answer(context)

    return grpc.stream_unary_rpc_method_handler(handle)


def _stream(answer: Callable[[Any], Coroutine[Any, Any, None]]) -> Any:
    async def handle(_: object, context: Any) -> None:
        await answer(context)

    return grpc.stream_stream_rpc_method_handler(handle)
