"""Steps over a stream are what steps by calls are, and a stream that ends, for whatever reason, ends nothing else."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest

from lram_export import RemotePolicy, load_policy
from lram_export.errors import RemoteError
from lram_export.serving.deadlines import Deadline, Watch
from lram_export.serving.messages import SERVICE, message, parse, put
from lram_export.serving.server import GRACE_SECONDS, PolicyServer
from tests.serving.conftest import ServeFunction
from tests.serving.test_remote_policy import Robot
from tests.serving.test_server import OBSERVATION, TOKENS, Client, refused


class Stream:
    """A stream on which a robot says what it likes."""

    def __init__(self, client: Client) -> None:
        self._sent: SimpleQueue[bytes | None] = SimpleQueue()
        begin = client._channel.stream_stream(f"/{SERVICE}/Steps")
        self.answers = begin(iter(self._sent.get, None), metadata=client._metadata, timeout=20)

    def send(self, data: bytes) -> None:
        self._sent.put(data)

    def step(self, session: bytes, number: int, observation: Any = OBSERVATION) -> Any:
        self.send(request(session, number, observation))
        return parse(message("StepAnswer"), next(self.answers))

    def code(self) -> grpc.StatusCode:
        """How it ends."""
        return refused(lambda: next(self.answers))[0]

    def close(self) -> None:
        self._sent.put(None)


def request(session: bytes, number: int, observation: Any = OBSERVATION) -> bytes:
    step = message("StepRequest")(session=session, number=number, reward=1.0)
    put(step.observations, {"observation": observation})
    return bytes(step.SerializeToString())


def within(seconds: float, held: Callable[[], object]) -> bool:
    end = time.monotonic() + seconds
    while not held() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(held())


@pytest.fixture
def client(serve: ServeFunction) -> Iterator[Client]:
    client = Client(serve())
    yield client
    client.close()


def test_a_step_is_the_same_by_a_stream_and_by_a_call(client: Client) -> None:
    session, stream = client("Open", protocol=1).session, Stream(client)
    first = stream.step(session, 1)
    assert client.step(session, 1) == first == stream.step(session, 1) == Stream(client).step(session, 1)
    second = client.step(session, 2)
    assert second != first and stream.step(session, 2) == second
    assert stream.step(session, 3).number == 3
    stream.close()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff" * 50, "INVALID_ARGUMENT"),
        (b"", "NOT_FOUND"),
        (request(b"x" * 32, 2), "NOT_FOUND"),
        (None, "FAILED_PRECONDITION"),
    ],
    ids=["garbage", "nothing", "another session", "another number"],
)
def test_what_is_refused_ends_the_stream_and_not_the_session(data: bytes | None, code: str, client: Client) -> None:
    session, stream = client("Open", protocol=1).session, Stream(client)
    stream.step(session, 1)
    stream.send(request(session, 7) if data is None else data)
    assert stream.code().name == code
    assert Stream(client).step(session, 2).number == 2


def test_what_the_policy_refuses_is_an_answer_and_the_stream_goes_on(client: Client) -> None:
    session, stream = client("Open", protocol=1).session, Stream(client)
    assert stream.step(session, 1, np.full((1, 204), np.nan, np.float32)).refusal.kind == "ValueError"
    assert not stream.step(session, 2).HasField("refusal")
    stream.close()


def test_who_has_no_token_is_hung_up_on_before_anything_is_read(serve: ServeFunction) -> None:
    server = serve(tokens=TOKENS)
    for metadata in ({}, {"authorization": "Bearer " + "c" * 32}):
        client = Client(server, **metadata)
        assert Stream(client).code() is grpc.StatusCode.UNAUTHENTICATED
        client.close()
    assert server.measures.turned_away == 2


def test_a_session_is_of_the_token_that_opened_it(serve: ServeFunction) -> None:
    server = serve(tokens=TOKENS)
    mine, other = (Client(server, authorization=f"Bearer {token}") for token in TOKENS)
    session, stolen = mine("Open", protocol=1).session, Stream(other)
    stolen.send(request(session, 1))
    assert stolen.code() is grpc.StatusCode.NOT_FOUND
    assert Stream(mine).step(session, 1).number == 1
    mine.close()
    other.close()


def test_streams_on_which_nothing_is_said_are_ended(serve: ServeFunction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lram_export.serving.server.RECEIVE_SECONDS", 1.0)
    server = serve(robots=1)
    clients = [Client(server) for _ in range(3)]
    silent = [Stream(client) for client in clients for _ in range(8)]
    with RemotePolicy(server.url) as remote:
        for _ in range(5):
            remote.act(np.zeros(204), 1.0)
        assert {stream.code() for stream in silent} == {grpc.StatusCode.UNAVAILABLE}
        remote.act(np.zeros(204), 1.0)
    assert within(5, lambda: not server._streams._open)
    for client in clients:
        client.close()


def test_a_robot_that_paused_does_not_notice_that_its_stream_was_ended(small: Path, serve: ServeFunction) -> None:
    """It says something else now and then, so its session lives."""
    server = serve(idle=1.0)
    with RemotePolicy(server.url, retries=1) as remote, load_policy(small, "native", threads=1) as own:
        robot = Robot(remote, own, 0)
        robot.step()
        assert len(server._streams._open) == 1
        end = time.monotonic() + 10
        while server._streams._open and time.monotonic() < end:
            remote.counts()
            time.sleep(0.05)
        assert not server._streams._open and server.measures.expired == 0
        for _ in range(3):
            robot.step()
    assert server.measures.repeated == 0


def test_a_server_that_stops_answers_the_step_it_has_begun_and_waits_for_no_robot(serve: ServeFunction) -> None:
    server, client = (server := serve(window=1.0, robots=3)), Client(server)
    session, _ = client("Open", protocol=1).session, client("Open", protocol=1)
    idle, busy = Stream(client), Stream(client)
    idle.step(client("Open", protocol=1).session, 1)
    busy.send(request(session, 1))
    assert within(10, lambda: server._batcher._wishes)
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < GRACE_SECONDS / 2
    assert parse(message("StepAnswer"), next(busy.answers)).number == 1
    assert idle.code() is busy.code() is grpc.StatusCode.UNAVAILABLE
    client.close()


class TestTimeout:
    @pytest.fixture
    def slow(self, serve: ServeFunction) -> PolicyServer:
        """A step waits two seconds for that of another robot, which never comes."""
        server = serve(window=2.0, robots=2)
        self.other = RemotePolicy(server.url)
        return server

    def test_a_step_without_an_answer_in_time_raises_and_is_finished_before_the_next(
        self, slow: PolicyServer, small: Path
    ) -> None:
        inputs = np.random.default_rng(0).standard_normal((3, 204)).astype(np.float32)
        with RemotePolicy(slow.url) as remote, load_policy(small, "native", threads=1) as own:
            for attempt in range(2):
                began = time.monotonic()
                with pytest.raises(RemoteError, match=r"no answer within 0\.2 s$"):
                    remote.act(inputs[0], timeout=0.2)
                assert time.monotonic() - began < 1.0, attempt
            own.act(inputs[0])
            np.testing.assert_array_equal(remote.act(inputs[1], 1.0), own.act(inputs[1], 1.0))
            self.other.close()
            np.testing.assert_array_equal(remote.act(inputs[2], 1.0, timeout=1.5), own.act(inputs[2], 1.0))
        assert slow.measures.steps == 3

    def test_threads_go_when_a_policy_is_closed_or_forgotten(self, serve: ServeFunction) -> None:
        def threads() -> int:
            """Those of robots: the server's are here, too."""
            return sum(not thread.name.startswith("lram-export calls") for thread in threading.enumerate())

        server = serve(robots=2)
        before = threads()
        closed, forgotten = RemotePolicy(server.url), RemotePolicy(server.url)
        for policy in (closed, forgotten):
            policy.act(np.zeros(204))
        assert threads() > before
        closed.close()
        del closed, forgotten, policy
        gc.collect()
        assert within(10, lambda: threads() <= before)


class TestWatch:
    def test_what_takes_too_long_is_called_off_once(self) -> None:
        watch, called = Watch(), threading.Event()
        with watch.over(Deadline(0.05), called.set):
            assert called.wait(10)
        assert watch.fired
        called.clear()
        with watch.over(Deadline(5), called.set):
            pass
        assert not watch.fired and not called.is_set()
        watch.close()

    def test_one_that_ends_earlier_than_the_last_is_not_forgotten(self) -> None:
        watch, called = Watch(), threading.Event()
        with watch.over(Deadline(60), called.set):
            time.sleep(0.05)
        with watch.over(Deadline(0.05), called.set):
            assert called.wait(10)
        watch.close()

    def test_what_has_ended_is_never_called_off(self) -> None:
        watch, called = Watch(), threading.Event()
        for _ in range(50):
            with watch.over(Deadline(0.05), called.set):
                pass
        assert not called.wait(0.2) and not watch.fired
        watch.close()
