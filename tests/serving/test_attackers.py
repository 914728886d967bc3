"""Whoever sends what is no message of the protocol harms nobody: other robots go on, to the bit, and it stays up."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from lram_export import RemotePolicy, load_policy
from lram_export.serving.messages import METHODS, SERVICE, message, put
from lram_export.serving.server import PolicyServer
from tests.serving.conftest import ServeFunction
from tests.serving.network import say
from tests.serving.test_remote_policy import Robot

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
TOKEN = "t" * 32


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def raw(port: int, random: np.random.Generator) -> None:
    say(port, random.bytes(int(random.integers(1, 4000))), 0.05)


def text(port: int, random: np.random.Generator) -> None:
    assert b"action" not in say(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 0.05)


def frames(port: int, random: np.random.Generator) -> None:
    """An HTTP/2 connection that goes wrong somewhere."""
    sent = PREFACE
    for _ in range(int(random.integers(1, 20))):
        kind, flags, stream = (int(n) for n in random.integers(0, (12, 256, 8)))
        sent += frame(kind, flags, stream, random.bytes(int(random.integers(0, 300))))
    say(port, sent, 0.05)


def half(port: int, random: np.random.Generator) -> None:
    say(port, PREFACE[: int(random.integers(1, len(PREFACE)))], 0.05)


def bodies(port: int, random: np.random.Generator) -> None:
    """Calls of gRPC whose messages are random, or a step with something wrong in it."""
    step = message("StepRequest")(session=random.bytes(32), number=1, reward=float("nan"))
    put(step.observations, {"observation": np.zeros((1, 204), np.float32)})
    good = bytearray(step.SerializeToString())
    for _ in range(3):
        good[int(random.integers(len(good)))] ^= 1 << int(random.integers(8))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for data in (random.bytes(int(random.integers(0, 3000))), bytes(good), b"", b"\xff" * 50):
            for method in METHODS:
                call = channel.unary_unary(f"/{SERVICE}/{method}")
                try:
                    call(data, timeout=5)
                except grpc.RpcError as error:
                    assert error.code().name in (
                        *("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"),
                        "UNAUTHENTICATED",
                    ), (method, error)
                else:
                    assert method == "Close", (method, data)
            with pytest.raises(grpc.RpcError) as caught:
                next(channel.stream_stream(f"/{SERVICE}/Steps")(iter((data,)), timeout=5))
            assert caught.value.code().name in ("INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED"), data


def large(port: int, random: np.random.Generator) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{SERVICE}/Step")(bytes(1 << 24), timeout=10)
        assert caught.value.code().name in ("RESOURCE_EXHAUSTED", "UNAUTHENTICATED")


ATTACKS: tuple[Callable[[int, np.random.Generator], None], ...] = (raw, text, frames, half, bodies, large)


@pytest.mark.parametrize("tokens", [(), (TOKEN,)], ids=["open", "with tokens"])
def test_garbage_harms_nobody(tokens: tuple[str, ...], small: Path, serve: ServeFunction) -> None:
    server = serve(tokens=tokens, robots=2)
    over, failed = threading.Event(), []

    def attack() -> None:
        random = np.random.default_rng()
        try:
            for _ in range(4):
                for one in ATTACKS:
                    one(server.address.port, random)
        except BaseException as error:
            failed.append(error)
        over.set()

    attacker = threading.Thread(target=attack)
    token = tokens[0] if tokens else None
    with RemotePolicy(server.url, token=token) as remote, load_policy(small, "native", threads=1) as own:
        robot = Robot(remote, own, 0)
        attacker.start()
        while not over.is_set():
            robot.step()
        attacker.join()
        assert failed == []
        robot.step()
        assert server.measures.steps == robot.steps and server.measures.sessions == 1
        assert (server.measures.turned_away > 0) == bool(tokens)


def test_those_who_say_nothing_or_stop_in_the_middle_take_no_thread(
    serve: ServeFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than the server has threads, all on live connections."""
    monkeypatch.setattr("lram_export.serving.server.RECEIVE_SECONDS", 0.5)
    server = serve(robots=1)
    silent = [socket.create_connection(("127.0.0.1", server.address.port)) for _ in range(20)]
    for number, end in enumerate(silent):
        end.sendall(PREFACE[: 10 * number])
    over = threading.Event()
    channels = [grpc.insecure_channel(f"127.0.0.1:{server.address.port}", [("x", n)]) for n in range(4)]
    calls = [
        channel.stream_unary(f"/{SERVICE}/Step").future(iter(over.wait, True), timeout=20)
        for channel in channels
        for _ in range(8)
    ]
    with RemotePolicy(server.url, timeout=3.0) as remote:
        for _ in range(5):
            remote.act(np.zeros(204), 1.0)
    for call in calls:
        assert call.exception(timeout=10).code().name == "INVALID_ARGUMENT"
    over.set()
    assert server.measures.malformed == len(calls)
    for channel in channels:
        channel.close()
    for end in silent:
        end.close()


def test_connections_are_counted_and_those_of_robots_survive(serve: ServeFunction) -> None:
    server = serve(robots=1)
    with RemotePolicy(server.url) as remote:
        remote.act(np.zeros(204))
        crowd = []
        for _ in range(300):
            end = socket.create_connection(("127.0.0.1", server.address.port))
            end.sendall(PREFACE)
            crowd.append(end)
        remote.act(np.zeros(204), 1.0)
        time.sleep(0.2)
        files = len(list(Path("/proc/self/fd").iterdir()))
        assert files < 300 + 4 + 64 + 150  # both ends of the crowd would be 600
        for end in crowd:
            end.close()
        remote.act(np.zeros(204), 1.0)


def test_an_attacker_is_no_reason_to_say_anything_on_standard_error(
    serve: ServeFunction, capfd: pytest.CaptureFixture[str]
) -> None:
    server: PolicyServer = serve()
    bodies(server.address.port, np.random.default_rng(0))
    assert "Traceback" not in capfd.readouterr().err
