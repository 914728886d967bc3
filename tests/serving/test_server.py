"""Who gets a seat, who does not, and what a server promises whoever speaks its protocol."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from lram_export import RemotePolicy
from lram_export.errors import RemoteError, UsageError
from lram_export.serving.addresses import Address
from lram_export.serving.messages import HEALTH_SERVICE, METHODS, SERVICE, message, parse, put
from lram_export.serving.server import PolicyServer, ServerOptions
from lram_export.serving.tokens import read_tokens
from tests.serving.conftest import ServeFunction

TOKENS = ("a" * 32, "b" * 32)
OBSERVATION = np.zeros((1, 204), np.float32)


class Client:
    """A robot that says what it likes."""

    def __init__(self, server: PolicyServer, **metadata: str) -> None:
        self._channel = grpc.insecure_channel(str(server.address))
        self._metadata = tuple(metadata.items())

    def raw(self, method: str, data: bytes) -> bytes:
        return bytes(self._channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=10, metadata=self._metadata))

    def __call__(self, method: str, **fields: Any) -> Any:
        request = message(f"{method}Request")(**fields)
        return parse(message(f"{method}Answer"), self.raw(method, request.SerializeToString()))

    def step(self, session: bytes, number: int, observation: Any = OBSERVATION) -> Any:
        request = message("StepRequest")(session=session, number=number, reward=1.0)
        put(request.observations, {"observation": observation})
        return parse(message("StepAnswer"), self.raw("Step", request.SerializeToString()))

    def close(self) -> None:
        self._channel.close()


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


class TestNumbers:
    def test_a_call_that_comes_again_gets_the_same_answer_and_is_made_once(self, serve: ServeFunction) -> None:
        server, client = (server := serve()), Client(server)
        session = client("Open", protocol=1).session
        answers = [client.step(session, 1).SerializeToString() for _ in range(3)]
        assert len(set(answers)) == 1 and server.measures.steps == 1 and server.measures.repeated == 2
        assert client.step(session, 2).SerializeToString() != answers[0]
        refusals = [client.step(session, 3, np.full((1, 204), np.nan, np.float32)) for _ in range(2)]
        assert refusals[0] == refusals[1] and refusals[0].refusal.kind == "ValueError"
        client.close()

    @pytest.mark.parametrize("number", [0, 1, 3, 2**64 - 1])
    def test_a_call_out_of_order_is_refused(self, number: int, serve: ServeFunction) -> None:
        client = Client(serve())
        session = client("Open", protocol=1).session
        client.step(session, 1)
        other = np.ones((1, 204), np.float32)
        code, said = refused(lambda: client.step(session, number, other))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert said.startswith("call 1 was another one" if number == 1 else "expected call 2, or 1 once more, got call")
        assert client.step(session, 2).number == 2
        client.close()

    def test_an_open_that_comes_again_takes_no_second_seat(self, serve: ServeFunction) -> None:
        server, client = (server := serve()), Client(server)
        nonce = os.urandom(16)
        sessions = {client("Open", protocol=1, nonce=nonce).session for _ in range(3)}
        assert len(sessions) == 1 and server.measures.sessions == 1
        client.step(sessions.pop(), 1)
        code, said = refused(lambda: client("Open", protocol=1, nonce=nonce))
        assert code is grpc.StatusCode.ALREADY_EXISTS and "expected a random one" in said
        client.close()

    def test_two_steps_of_one_session_at_a_time_are_no_race(self, serve: ServeFunction) -> None:
        client = Client(serve(window=0.2, robots=3))
        session, _ = client("Open", protocol=1).session, client("Open", protocol=1)
        request = message("StepRequest")(session=session, number=1)
        put(request.observations, {"observation": OBSERVATION})
        call = client._channel.unary_unary(f"/{SERVICE}/Step")
        both = [call.future(request.SerializeToString()) for _ in range(2)]
        request.number = 2
        code, said = refused(lambda: client.raw("Step", request.SerializeToString()))
        assert code is grpc.StatusCode.FAILED_PRECONDITION and "call 1 is still being carried out" in said
        assert both[0].result() == both[1].result()
        client.close()


class TestOpening:
    @pytest.mark.parametrize(
        ("fields", "code", "said"),
        [
            ({"protocol": 2}, "FAILED_PRECONDITION", "protocol: this server speaks 1, the robot 2"),
            ({}, "FAILED_PRECONDITION", "protocol: this server speaks 1, the robot 0"),
            ({"protocol": 1, "nonce": b"x"}, "INVALID_ARGUMENT", "nonce: expected 16 bytes, got 1"),
            ({"protocol": 1, "bundle": "f" * 64}, "FAILED_PRECONDITION", "bundle: the robot expects 'ffffffffffff'"),
            ({"protocol": 1, "outputs": ["q"]}, "INVALID_ARGUMENT", "outputs: expected some of action, action_logits"),
            ({"protocol": 1, "robot": "a\nb"}, "INVALID_ARGUMENT", "robot: expected a name"),
        ],
    )
    def test_a_robot_that_expects_something_else_gets_no_seat(
        self, fields: dict[str, Any], code: str, said: str, serve: ServeFunction
    ) -> None:
        server, client = (server := serve()), Client(server)
        found = refused(lambda: client("Open", **fields))
        assert found[0].name == code and found[1].startswith(said)
        assert server.measures.sessions == 0
        client.close()

    def test_the_bundle_that_a_robot_expects_is_named(self, serve: ServeFunction) -> None:
        server = serve()
        RemotePolicy(server.url, bundle=server.description.bundle).close()
        with pytest.raises(RemoteError, match="bundle: the robot expects 'eeee"):
            RemotePolicy(server.url, bundle="e" * 64)

    def test_there_are_as_many_seats_as_it_says_and_one_that_is_left_is_free(self, serve: ServeFunction) -> None:
        server = serve(robots=2)
        first, second = RemotePolicy(server.url), RemotePolicy(server.url)
        with pytest.raises(RemoteError, match="all seats are taken: this server has 2; one that is silent"):
            RemotePolicy(server.url)
        first.close()
        with RemotePolicy(server.url) as third:
            assert third.act(OBSERVATION[0]).shape == second.act(OBSERVATION[0]).shape
        second.close()

    def test_a_robot_that_goes_away_without_a_word_frees_its_seat(self, serve: ServeFunction) -> None:
        server, client = (server := serve(robots=1, idle=0.2)), Client(server)
        client("Open", protocol=1)
        client.close()
        end = time.monotonic() + 10
        while server.measures.expired == 0 and time.monotonic() < end:
            time.sleep(0.02)
        RemotePolicy(server.url).close()


class TestTokens:
    def test_who_has_none_or_another_gets_nothing(self, serve: ServeFunction) -> None:
        server = serve(tokens=TOKENS)
        for metadata in (
            {},
            {"authorization": "Bearer " + "c" * 32},
            {"authorization": TOKENS[0]},
            {"token": TOKENS[0]},
        ):
            client = Client(server, **metadata)
            for method in METHODS:
                code, said = refused(lambda m=method, c=client: c(m))  # type: ignore[misc]
                assert code is grpc.StatusCode.UNAUTHENTICATED
                assert said == "expected the token of a robot: authorization: Bearer TOKEN"
            client.close()
        assert server.measures.turned_away == 4 * len(METHODS) and server.measures.sessions == 0
        with pytest.raises(RemoteError, match="expected the token of a robot"):
            RemotePolicy(server.url)

    def test_nothing_of_a_message_is_read_before_the_token_is_known(self, serve: ServeFunction) -> None:
        """Its stream is never ended: who were read would have to be waited for."""
        server = serve(tokens=TOKENS)
        channel = grpc.insecure_channel(str(server.address))
        began = time.monotonic()
        over = threading.Event()
        call = channel.stream_unary(f"/{SERVICE}/Step").future(iter(over.wait, True), timeout=30)
        assert refused(call.result)[0] is grpc.StatusCode.UNAUTHENTICATED
        assert time.monotonic() - began < 4
        over.set()
        channel.close()

    def test_a_session_is_of_its_token_and_its_secret(self, serve: ServeFunction) -> None:
        server = serve(tokens=TOKENS)
        mine, other = (Client(server, authorization=f"Bearer {token}") for token in TOKENS)
        session = mine("Open", protocol=1).session
        assert mine.step(session, 1).number == 1
        for thief, shown in (
            (other, session),
            (mine, session[:-1] + bytes([session[-1] ^ 1])),
            (mine, session[:8]),
            (mine, b""),
            (mine, session + b"x"),
        ):
            code, said = refused(lambda c=thief, s=shown: c.step(s, 2))  # type: ignore[misc]
            assert code is grpc.StatusCode.NOT_FOUND and said.startswith("no such session")
        assert mine.step(session, 2).number == 2
        mine.close()
        other.close()

    def test_one_token_takes_no_more_seats_than_it_may(self, serve: ServeFunction) -> None:
        server = serve(tokens=TOKENS, robots=3, per_token=1)
        with (
            RemotePolicy(server.url, token=TOKENS[0]),
            RemotePolicy(server.url, token=TOKENS[1]),
            pytest.raises(RemoteError, match="this token has 1 seat already, as many as it may have"),
        ):
            RemotePolicy(server.url, token=TOKENS[1])

    def test_files_of_tokens(self, tmp_path: Path) -> None:
        path = tmp_path / "tokens"

        def read(text: bytes, mode: int = 0o600) -> tuple[str, ...]:
            path.write_bytes(text)
            path.chmod(mode)
            return read_tokens(path)

        assert read(f"# robots\n\n{TOKENS[0]}\n  {TOKENS[1]} \n".encode()) == TOKENS
        for text, mode, said in (
            (b"x" * 32, 0o644, "others than its owner may read or change it; run: chmod 600"),
            (b"", 0o600, "expected a token per line, got none"),
            (b"short\n", 0o600, "line 1: expected a token of 16 to 256"),
            (b"a b" * 10, 0o600, "line 1: expected a token"),
            (b"\xff" * 32, 0o600, "expected tokens in ASCII"),
            (b"x" * 32 + b"\n" + b"x" * 32, 0o600, "stands in it twice"),
        ):
            with pytest.raises(UsageError, match=said):
                read(text, mode)
        with pytest.raises(UsageError, match="cannot be read"):
            read_tokens(tmp_path)

    def test_a_robots_token_lies_in_a_file(self, serve: ServeFunction, tmp_path: Path) -> None:
        path = tmp_path / "token"
        path.write_text(TOKENS[1])
        path.chmod(0o600)
        RemotePolicy(serve(tokens=TOKENS).url, token_file=path).close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for this machine that vouches for itself, and another one."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ours", "other"):
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        command += ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
        subprocess.run(command, check=True, capture_output=True)
    return folder


class TestEncryption:
    def test_a_robot_talks_to_the_server_whose_certificate_it_knows(
        self, certificates: Path, serve: ServeFunction
    ) -> None:
        server = serve(tokens=TOKENS, certificate=certificates / "ours.pem", key=certificates / "ours.key")
        assert server.url.startswith("grpcs://")
        with RemotePolicy(server.url, token=TOKENS[0], ca=certificates / "ours.pem") as remote:
            assert remote.act(OBSERVATION[0]).shape == (8,)
        for url, ca in ((server.url, "other.pem"), (server.url.replace("grpcs", "grpc"), None)):
            with pytest.raises(RemoteError, match="not reached"):
                RemotePolicy(url, token=TOKENS[0], ca=None if ca is None else certificates / ca, retries=1, timeout=2.0)

    def test_files_that_are_no_certificate_and_its_key(self, certificates: Path, small: Path) -> None:
        pem, key = certificates / "ours.pem", certificates / "ours.key"
        for options, said in (
            ({"certificate": pem}, "--certificate, --key: give both, or none"),
            ({"certificate": key, "key": key}, "no certificate and its key, in PEM"),
            ({"certificate": pem, "key": certificates / "other.key"}, "no certificate and its key, in PEM"),
        ):
            with pytest.raises(UsageError, match=said):
                ServerOptions(small, **options).credentials()  # type: ignore[arg-type]
        for ca, said in ((key, "expected certificates in PEM"), (certificates / "none", "cannot be read")):
            with pytest.raises(UsageError, match=said):
                RemotePolicy("grpcs://127.0.0.1:1", ca=ca)

    def test_beyond_this_machine_it_takes_tokens_and_tls(self, certificates: Path, small: Path) -> None:
        anywhere, both = (
            Address("0.0.0.0", 0),
            {"certificate": certificates / "ours.pem", "key": certificates / "ours.key"},
        )
        for options, said in (
            ({}, "it needs --token-file and --certificate and --key; --insecure does without"),
            ({"tokens": TOKENS}, "it needs --certificate and --key;"),
            (both, "it needs --token-file;"),
        ):
            with pytest.raises(UsageError, match=said):
                ServerOptions(small, address=anywhere, **options).credentials()  # type: ignore[arg-type]
        assert ServerOptions(small, address=anywhere, tokens=TOKENS, **both).credentials() is not None  # type: ignore[arg-type]
        assert ServerOptions(small, address=anywhere, insecure=True).credentials() is None


def test_a_probe_hears_that_it_serves_without_a_token(serve: ServeFunction) -> None:
    server = serve(tokens=TOKENS)
    channel = grpc.insecure_channel(str(server.address))
    check = channel.unary_unary(f"/{HEALTH_SERVICE}/Check")
    for service in ("", SERVICE):
        request = message("HealthCheckRequest", "grpc.health.v1")(service=service)
        answer = parse(message("HealthCheckResponse", "grpc.health.v1"), check(request.SerializeToString()))
        assert answer.status == 1
    request = message("HealthCheckRequest", "grpc.health.v1")(service="other")
    assert refused(lambda: check(request.SerializeToString()))[0] is grpc.StatusCode.NOT_FOUND
    channel.close()


def test_a_port_in_use_is_said(serve: ServeFunction, small: Path) -> None:
    server = serve()
    with pytest.raises(UsageError, match=f"--listen {server.address}: not possible"):
        serve(address=server.address)


def test_a_server_that_stops_answers_what_it_has_begun(serve: ServeFunction) -> None:
    server, client = (server := serve(window=0.3, robots=2)), Client(server)
    session, _ = client("Open", protocol=1).session, client("Open", protocol=1)
    request = message("StepRequest")(session=session, number=1)
    put(request.observations, {"observation": OBSERVATION})
    call = client._channel.unary_unary(f"/{SERVICE}/Step").future(request.SerializeToString())
    end = time.monotonic() + 10
    while not server._batcher._wishes and time.monotonic() < end:
        time.sleep(0.005)
    server.stop()
    assert parse(message("StepAnswer"), call.result()).number == 1
    assert refused(lambda: client("Open", protocol=1))[0] is grpc.StatusCode.UNAVAILABLE
    client.close()
