"""The loop as a program: signals, saved runs, what systemd is told, robots that are none."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lram_export import ExportOptions, export_bundle
from lram_export.loop.service import Notifier
from tests.conftest import fail, succeed
from tests.loop.robots import follower

ROBOT = """
import time


class Robot:
    def __init__(self):
        self.ticks = 0

    def reset(self):
        print("reset", flush=True)
        return self.observe()

    def observe(self):
        self.ticks += 1
        {observe}
        return [float(self.ticks % 5), 0.0]

    def act(self, action):
        if self.ticks == 3:
            print("moving", flush=True)

    def stop(self):
        print("safe", flush=True)

    def close(self):
        time.sleep(0.3)
        print("closed after", self.ticks, flush=True)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "follower.lram"
    export_bundle(follower(), None, path, ExportOptions(("native",), report=False, reference_steps=20))
    return path


@contextmanager
def running(
    folder: Path, bundle: Path, *options: str, observe: str = "", **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A loop in a process of its own, once its robot moves."""
    (folder / "robot.py").write_text(ROBOT.format(observe=observe))
    program = [sys.executable, "-m", "lram_export", "loop", str(bundle), "--robot", "robot", *options]
    process = subprocess.Popen(
        program,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        assert process.stdout is not None
        while (line := process.stdout.readline()) and line != "moving\n":
            pass
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_motors_and_no_second_one_interrupts_that(
    number: signal.Signals, bundle: Path, tmp_path: Path
) -> None:
    with running(tmp_path, bundle) as process:
        process.send_signal(number)
        time.sleep(0.1)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "closed after" in out and " steps at 50 Hz: p50 " in out and "safe" not in out


def test_a_signal_ends_a_robot_that_reads_for_ever(bundle: Path, tmp_path: Path) -> None:
    with running(tmp_path, bundle, observe="time.sleep(60 if self.ticks > 3 else 0)") as process:
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "closed after 4" in out


def test_sighup_lets_a_replaced_bundle_take_over(bundle: Path, tmp_path: Path) -> None:
    with running(tmp_path, bundle) as process:
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        line = ""
        while "runs now" not in line:
            line = process.stderr.readline()
            assert line
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and "closed after" in out


def test_a_run_goes_on_where_it_was_told_to(bundle: Path, tmp_path: Path) -> None:
    state = tmp_path / "run.npz"
    once = ("loop", bundle, "--steps", "5", "--rate", "1000", "--state", state)
    succeed(*once)
    with np.load(state) as file:
        assert file["state.count"].item() == 5
    succeed(*once, "--resume")
    with np.load(state) as file:
        assert file["state.count"].item() == 10
    succeed(*once)
    with np.load(state) as file:
        assert file["state.count"].item() == 5


def test_a_robot_that_is_resumed_is_not_reset(bundle: Path, tmp_path: Path) -> None:
    for resume in ((), ("--resume",)):
        with running(tmp_path, bundle, "--state", str(tmp_path / "run.npz"), *resume) as process:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=20)
        assert process.returncode == 0, err
    with np.load(tmp_path / "run.npz") as file:
        assert file["state.count"].item() > 3
    assert "reset" not in out


def test_a_run_of_another_policy_is_refused_before_anything_moves(bundle: Path, tmp_path: Path) -> None:
    state = tmp_path / "run.npz"
    np.savez(state, **{"state.count": np.zeros((1, 7), np.float32), "is_first": np.ones(1, np.float32)})
    code, text = fail("loop", bundle, "--steps", "5", "--state", state, "--resume")
    assert code == 2
    assert "--resume: " in text and "run.npz: state.count: expected float32 of shape (1, 1)" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected MODULE:CLASS"),
        ("class Robot:\n    def reset(self): ...\n", "has no method observe(); a robot has reset, observe, act, close"),
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        (ROBOT.format(observe="").replace("self.ticks = 0", "open('/dev/no-such-arm')"), "cannot be made: "),
    ],
)
def test_a_robot_that_is_none_is_refused_in_a_line(text: str, message: str, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "robot.py").write_text(text)
    program = [sys.executable, "-m", "lram_export", "loop", str(bundle), "--robot", "robot", "--steps", "1"]
    done = subprocess.run(program, cwd=tmp_path, text=True, capture_output=True, check=False, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --robot: robot: ") and message in line


def test_systemd_is_told_that_it_runs_lives_and_stops(bundle: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        with running(tmp_path, bundle, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000") as process:
            heard = [listener.recv(100).decode() for _ in range(3)]
            process.send_signal(signal.SIGTERM)
            while heard[-1] != "STOPPING=1":
                heard.append(listener.recv(100).decode())
            process.communicate(timeout=20)
    assert heard[:3] == ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]


def test_a_watchdog_that_is_another_process_is_told_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "1")
        monkeypatch.setenv("WATCHDOG_PID", "1")
        notifier = Notifier()
        notifier.alive()
        notifier.status("50 Hz")
        assert listener.recv(100) == b"STATUS=50 Hz"


def test_a_rehearsal_takes_the_file_that_run_takes(bundle: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen.npz"
    np.savez(seen, observations=np.float32([[1, 1], [np.nan, 1], [2, 2]]))
    text = succeed("loop", bundle, "--observations", seen, "--steps", "6", "--rate", "1000").stdout
    assert text.startswith("6 steps at 1000 Hz: p50 ") and "2 bridged steps, faults: not finite 2" in text


def test_a_process_that_was_stopped_for_a_while_goes_on_and_says_so(bundle: Path, tmp_path: Path) -> None:
    with running(tmp_path, bundle) as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.0)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    (said,) = [line for line in out.splitlines() if " steps at 50 Hz: " in line]
    steps, missed = int(said.split()[0]), int(said.split(" missed")[0].split()[-1])
    assert missed >= 1
    assert steps < 3 + 50 * 1.0  # what was missed is not made up for
