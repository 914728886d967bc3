"""The loop as a process, a robot as another, and everything between them that can go wrong."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lram_export.flight.reader import read_flight
from tests.loop.rig.faulty import (
    COUNTED,
    DISCONNECT,
    FROZEN,
    HANG,
    LATE,
    LATE_TAKEN,
    NAN,
    OUT,
    SHAPE,
    SILENT,
    Fault,
    FaultyServer,
    Tolerance,
    uncounted,
)
from tests.loop.rig.flight import Flight
from tests.loop.rig.subject import write_subject
from tests.loop.rig.wall_clock import WallClock

TOLERANCE = Tolerance()
Start = Callable[..., Flight]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rig")
    write_subject(folder / "first.lram", 1)
    write_subject(folder / "second.lram", 2)
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    server = FaultyServer(f"unix:{tmp_path / 'arm'}", TOLERANCE)
    yield server
    server.close()


@pytest.fixture
def start(tmp_path: Path, exports: Path, server: FaultyServer) -> Start:
    def flight(*options: str, bundle: Path = exports / "first.lram", **said: Any) -> Flight:
        return Flight(tmp_path, bundle, server, options, **said)

    return flight


def test_whatever_goes_wrong_is_bridged_and_counted(start: Start, server: FaultyServer, tmp_path: Path) -> None:
    faults = [
        Fault(40, NAN, 3),
        Fault(60, OUT, 3),
        Fault(80, SHAPE, 2),
        Fault(100, FROZEN, 8),
        *(Fault(130 + 10 * i, LATE, milliseconds) for i, milliseconds in enumerate((1, 4, 20, 50, 100, 200))),
        Fault(220, SILENT, 25),  # longer than an action may be old
        Fault(260, HANG, 60),
        Fault(280, LATE_TAKEN, 30),
        Fault(300, DISCONNECT, 60),
    ]
    for fault in faults:
        server.inject(fault)
    clock = WallClock(tmp_path)
    flight = start("--record", str(tmp_path / "flight.mcap"), environment=clock.environment)
    flight.moments = {
        120: lambda it: clock.jump(3600),
        330: lambda it: it.pause(2.0),
        360: lambda it: it.send(signal.SIGTERM),
    }
    with flight:
        code = flight.run()
    said, found = flight.said(), server.arm.verdict
    assert code == 0, flight.err.read_text()
    assert not found.wrong
    assert said.clamped and said.slowed  # there was something to be held back
    assert clock.reads > 0

    assert server.injected.total() == len(faults)
    assert all(server.expected[kind] > 0 for kind in COUNTED) and not uncounted(server.expected, said.faults)
    assert said.bridged == sum(said.faults.values()) and said.missed >= 1 and said.stale >= 1

    assert found.stops["the loop is gone"] >= 1 and found.stops[TOLERANCE.no_command] >= 1
    assert found.resets == 1  # it went on

    recorded = read_flight(tmp_path / "flight.mcap")
    assert recorded.whole and recorded.count + recorded.missing == said.steps
    seconds = [(event.at - recorded.header.began) / 1e9 for event in recorded.events]
    assert seconds == sorted(seconds) and seconds[-1] < 600  # nor by the wall clock
    assert found.commands >= said.steps - said.stale - said.faults["not sent"] - said.faults["missing"]


def test_another_bundle_takes_over_and_no_command_is_left_out(
    start: Start, server: FaultyServer, tmp_path: Path, exports: Path
) -> None:
    bundle = shutil.copytree(exports / "first.lram", tmp_path / "flown.lram")
    other = shutil.copytree(exports / "second.lram", tmp_path / "other.lram")
    flight = start(bundle=bundle)

    def swap(it: Flight) -> None:
        bundle.rename(tmp_path / "before.lram")
        other.rename(bundle)
        it.send(signal.SIGHUP)

    found = server.arm.verdict
    flight.moments = {100: swap}
    with flight:
        assert flight.run(until=lambda: found.versions[2] > 50) == -1
        flight.send(signal.SIGTERM)
        assert flight.run() == 0, flight.err.read_text()
    said = flight.said()
    assert "runs now" in flight.err.read_text()
    assert not found.wrong and not found.stops[TOLERANCE.no_command]
    assert list(found.versions) == [1, 2]
    assert found.commands >= said.steps - said.stale - said.faults["not sent"]


def test_a_robot_that_never_comes_back_ends_the_loop(start: Start, server: FaultyServer) -> None:
    flight = start()
    server.inject(Fault(50, DISCONNECT, 10**9))
    with flight:
        code = flight.run()
    assert code == 1
    assert not server.arm.verdict.wrong and server.still
    steps = TOLERANCE.bridge + 1
    *_, last = flight.err.read_text().splitlines()
    assert f"stopped: {steps} steps in a row with a fault, the last: missing: FileNotFoundError: " in last
    assert "then the robot's close() failed, its motors may run on: " in last
    assert flight.said().faults["missing"] > TOLERANCE.bridge


def test_a_disk_that_is_full_ends_the_record_and_not_the_flight(
    start: Start, server: FaultyServer, tmp_path: Path
) -> None:
    flight = start("--record", str(tmp_path / "flight.mcap"))
    flight.moments = {200: lambda it: it.send(signal.SIGTERM)}
    with flight:
        assert flight.process is not None
        resource.prlimit(flight.process.pid, resource.RLIMIT_FSIZE, (100, 100))
        assert flight.run() == 0, flight.err.read_text()
    assert not server.arm.verdict.wrong and server.arm.verdict.commands >= 150
    assert "flight.mcap: recording ended, the loop goes on without: " in flight.err.read_text()
    assert " left out, ended early: " in flight.out.read_text()


@pytest.mark.slow
def test_a_disk_that_fills_up_in_flight_leaves_what_was_written_before(
    start: Start, server: FaultyServer, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=70m", "tmpfs", disk], check=False).returncode != 0:
        pytest.skip("no disk may be mounted here")
    try:
        flight = start("--record", str(disk / "flight.mcap"))
        flight.moments = {1200: lambda it: fill(disk / "other"), 2500: lambda it: it.send(signal.SIGTERM)}
        with flight:
            assert flight.run() == 0, flight.err.read_text()
        recorded = read_flight(disk / "flight.mcap")
    finally:
        subprocess.run(["umount", disk], check=True)
    assert "recording ended, the loop goes on without: OSError: [Errno 28]" in flight.err.read_text()
    assert not server.arm.verdict.wrong and server.arm.verdict.commands >= 2000
    assert not recorded.whole and 500 < recorded.count < 1500


def fill(path: Path) -> None:
    with path.open("wb") as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
            file.flush()


def test_a_loop_that_is_killed_leaves_a_robot_that_stops_and_the_next_begins_as_it_is_told(
    start: Start, server: FaultyServer, tmp_path: Path
) -> None:
    state, found = tmp_path / "run.npz", server.arm.verdict
    options = ("--state", str(state), "--resume")

    flight = start(*options)
    flight.moments = {50: lambda it: it.send(signal.SIGKILL)}
    with flight:
        assert flight.run() == -signal.SIGKILL
    assert server.still and found.stops == {"the loop is gone": 1}
    assert not state.exists()

    flight = start(*options)
    flight.moments = {50: lambda it: it.send(signal.SIGTERM)}
    with flight:
        assert flight.run() == 0
    assert "not there yet; an episode begins" in flight.err.read_text()
    before = found.steps
    assert found.resets == 2 and 40 <= before < 80

    flight = start(*options)
    flight.moments = {20: lambda it: it.send(signal.SIGTERM)}
    with flight:
        assert flight.run() == 0
    assert found.resets == 2 and found.steps >= before + 10  # anew, it would be at 20
    assert not found.wrong
