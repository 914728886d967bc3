"""What a loop and a robot's process say to each other, and what they do where the other says something else."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sockets.arm import Arm
from sockets.robot import RefusedError, SocketRobot
from sockets.server import Server
from sockets.wire import HEADER, Kind, Line, Message, State, WireError, listening

TARGETS = [0.1, 0.2, 0.3]


class Process:
    """A robot's process, as a thread."""

    def __init__(self, address: str, arm: Arm, watchdog: float = 0.2) -> None:
        self.said: list[str] = []
        self.arm, self.server = arm, Server(address, arm, watchdog, 0.25, self.said.append)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        self.server.close()

    def _serve(self) -> None:
        while not self._over.is_set():
            self.server.poll(0.01)


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "unix":
        return f"unix:{tmp_path / 'arm'}"
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"tcp:127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def process(address: str) -> Iterator[Process]:
    process = Process(address, Arm())
    yield process
    process.end()


@pytest.fixture
def robot(address: str, process: Process, monkeypatch: pytest.MonkeyPatch) -> SocketRobot:
    monkeypatch.setattr(SocketRobot, "address", address)
    monkeypatch.setattr(SocketRobot, "timeout", 5.0)
    return SocketRobot()


def until(what: object, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_robot_is_observed_moved_and_let_go_of(robot: SocketRobot, process: Process) -> None:
    assert robot.reset().shape == (9,)
    assert robot.act(TARGETS) < 0  # type: ignore[operator]
    np.testing.assert_array_equal(robot.holds(), np.float32(TARGETS))
    before = robot.observe()[:3]
    time.sleep(0.05)
    assert (robot.observe()[:3] > before).all()
    robot.close()
    assert process.server.still
    assert "stopped" not in " ".join(process.said)  # it was told to


def test_motors_without_a_command_stop_by_themselves_and_say_what_they_hold_before_they_move_again(
    robot: SocketRobot, process: Process
) -> None:
    robot.reset()
    robot.act(TARGETS)
    until(lambda: "stopped: no command for 200 ms" in process.said)
    robot.observe()
    with pytest.raises(RefusedError, match="ACT: refused: stopped"):
        robot.act(TARGETS)
    robot.act(TARGETS)


@pytest.mark.parametrize(("action", "why"), [([1.0], "size"), ([np.nan] * 3, "not finite")])
def test_an_action_that_is_none_is_refused(robot: SocketRobot, action: list[float], why: str) -> None:
    robot.reset()
    with pytest.raises(RefusedError, match=f"ACT: refused: {why}"):
        robot.act(action)


def test_an_action_of_an_old_reading_is_refused(robot: SocketRobot) -> None:
    robot.reset()
    time.sleep(0.3)
    with pytest.raises(RefusedError, match="ACT: refused: too old"):
        robot.act(TARGETS)


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(robot: SocketRobot, process: Process) -> None:
    robot.reset()
    answer = process.server.answer

    def slow(question: Message) -> Message:
        process.server.answer = answer  # type: ignore[method-assign]
        time.sleep(0.2)
        return answer(question)

    process.server.answer = slow  # type: ignore[method-assign]
    robot.timeout = 0.1
    with pytest.raises(TimeoutError, match="OBSERVE: no answer within 100 ms"):
        robot.observe()
    time.sleep(0.2)  # now it is there
    robot.timeout = 5.0
    assert robot.holds().shape == (3,)  # a reading has 9
    robot.observe()
    robot.act(TARGETS)
    np.testing.assert_array_equal(robot.holds(), np.float32(TARGETS))


def test_one_loop_commands_and_another_may_take_over_once_the_motors_are_stopped(
    robot: SocketRobot, process: Process
) -> None:
    robot.reset()
    robot.act(TARGETS)
    with pytest.raises((RefusedError, ConnectionError)):
        SocketRobot().reset()
    until(lambda: process.server.still)
    other = SocketRobot()
    other.reset()
    with pytest.raises(ConnectionError):
        robot.observe()
    other.close()


def test_a_robot_that_was_started_anew_is_found_again_and_begins_another_episode(
    robot: SocketRobot, process: Process, address: str
) -> None:
    robot.reset()
    process.end()
    with pytest.raises(ConnectionError):
        robot.observe()
    again = Process(address, Arm())
    robot.observe()
    assert robot.event() == "new episode"
    again.end()


def test_episodes_end_and_begin(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SocketRobot, "address", address)
    monkeypatch.setattr(SocketRobot, "timeout", 5.0)
    monkeypatch.setattr("sockets.arm.PAUSE", 0.1)
    process = Process(address, Arm(episode_steps=2))
    robot = SocketRobot()
    robot.reset()
    events = []
    for _ in range(2):
        robot.act(TARGETS)
        events.append(robot.event())
    assert events == [None, "done"] and process.server.still
    assert robot.event() is None
    until(lambda: robot.event() == "new episode")
    robot.close()
    process.end()


def test_messages_come_in_any_pieces() -> None:
    ours, theirs = socket.socketpair()
    message = Message(Kind.READING, 7, 3, np.float32([1, 2]), State.STILL, 0, 5, 0.5)
    line = Line(theirs)
    for byte in message.packed() * 2:
        ours.send(bytes([byte]))
    for _ in range(2):
        found = line.receive(time.monotonic() + 1)
        assert (found.kind, found.number, found.about, found.state, found.episode) == (16, 7, 3, State.STILL, 5)
        assert found.values.tolist() == [1, 2] and found.reward == 0.5
    ours.send(message.packed()[:45])
    with pytest.raises(TimeoutError):
        line.receive(0.0)
    ours.close()
    with pytest.raises(ConnectionError):
        line.receive(0.0)


STRANGE = {
    "another protocol": b"GET / HTTP/1.1\r\n".ljust(HEADER.size),
    "no such kind": HEADER.pack(b"L1", 99, 0, 0, 0, 1, 0, 0, 0.0),
    "too many values": HEADER.pack(b"L1", 2, 0, 2**31, 0, 1, 0, 0, 0.0),
}


@pytest.mark.parametrize("header", STRANGE.values(), ids=STRANGE)
def test_whoever_speaks_another_protocol_is_hung_up_on(header: bytes, process: Process, address: str) -> None:
    ours, theirs = socket.socketpair()
    ours.send(header)
    with pytest.raises(WireError, match="expected a message of L1"):
        Line(theirs).receive(0.0)
    stranger = Line.connected(address, 5.0)
    stranger._socket.sendall(header)
    until(lambda: any(line.startswith("the loop has gone: expected a message of L1") for line in process.said))


def test_a_socket_that_a_killed_process_left_is_used_again(tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'arm'}"
    listening(address).close()
    first = listening(address)
    with pytest.raises(OSError, match="in use"):
        listening(address)
    first.close()


def test_nobody_there_is_a_line_with_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SocketRobot, "address", f"unix:{tmp_path / 'arm'}")
    with pytest.raises(FileNotFoundError, match="arm"):
        SocketRobot()
    with pytest.raises(OSError, match="expected unix:PATH or tcp:HOST:PORT"):
        Line.connected("arm", 1.0)
