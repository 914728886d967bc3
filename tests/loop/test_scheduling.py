"""Which thread of a loop has a real-time priority and a core of its own, and which have not."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from lram_export.cli.loop import loop
from lram_export.errors import UsageError
from lram_export.loop.scheduling import LoopThread, Scheduling, _cores
from lram_export.system.machine import available_cpus
from tests.conftest import ExportFunction, fail

PRIORITY = 20
ROBOT = """
import json
import os
import sys
import threading
import time
from pathlib import Path


def threads():
    return {
        task.name: [os.sched_getscheduler(int(task.name)) & ~os.SCHED_RESET_ON_FORK,
                    sorted(os.sched_getaffinity(int(task.name)))]
        for task in Path("/proc/self/task").iterdir()
    }


class Robot:
    def __init__(self):
        print("made", flush=True)
        self.ticks, self.last = 0, None
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()  # such as a camera's

    def reset(self):
        return self.observe()

    def observe(self):
        self.ticks += 1
        return [0.0] * 204

    def act(self, action):
        now = threads()
        if self.ticks > 2 and now != self.last:
            self.last = now
            print(json.dumps([threading.get_native_id(), now]), flush=True)

    def close(self):
        pass
"""


def permitted() -> bool:
    try:
        Scheduling(PRIORITY).check()
    except UsageError:
        return False
    return True


rights = pytest.mark.skipif(not permitted(), reason="no real-time priorities are allowed here")
two_cores = pytest.mark.skipif(len(available_cpus()) < 2, reason="one core")


@pytest.fixture(scope="module")
def bundle(exported: ExportFunction) -> Path:
    return exported("state_ms", targets=("native",))


def started(folder: Path, bundle: Path, *options: str, **more: Any) -> subprocess.Popen[str]:
    (folder / "robot.py").write_text(ROBOT)
    program = [sys.executable, "-m", "lram_export", "loop", str(bundle), "--robot", "robot", *options]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(program, cwd=folder, text=True, **pipes, **more)


def without_rights() -> None:
    """For a new process: it may not raise priorities, whoever it is."""
    cap_sys_nice, drop = 23, 24
    resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
    ctypes.CDLL(None).prctl(drop, cap_sys_nice, 0, 0, 0)


@rights
@two_cores
def test_only_the_loops_thread_has_the_priority_and_the_core_also_after_a_swap(bundle: Path, tmp_path: Path) -> None:
    cpu, *others = sorted(available_cpus())
    with started(tmp_path, bundle, "--priority", str(PRIORITY), "--cpu", str(cpu), "--threads", "2") as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.readline() == "made\n"
            looping, before = json.loads(process.stdout.readline())
            while "runs at" not in (said := process.stderr.readline()):  # memory may not be locked here
                assert said
            process.send_signal(signal.SIGHUP)
            while "runs now" not in process.stderr.readline():
                pass
            seen = [before]
            for line in process.stdout:
                seen.append(json.loads(line)[1])
                # the thread that loads has ended, that of the old policy, too, and one of the new policy is there
                if len(seen[-1]) == len(before) and seen[-1].keys() != before.keys():
                    break
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0, err
    for now in seen:
        assert now.pop(str(looping)) == [os.SCHED_FIFO, [cpu]]
        assert all(policy == os.SCHED_OTHER for policy, _ in now.values()), now
    for now in (seen[0], seen[-1]):  # in between one may have begun where the loop's thread is
        assert len(now) > 1 and all(cpus == others for _, cpus in now.values()), now
    assert said.startswith(f"the loop's thread runs at real-time priority {PRIORITY} on core {cpu}; ")
    assert said.endswith(f"other threads of this process keep their priority, on {_cores(others)}\n")


def test_a_priority_that_is_not_allowed_is_refused_before_there_is_a_robot(bundle: Path, tmp_path: Path) -> None:
    with started(tmp_path, bundle, "--priority", "20", preexec_fn=without_rights) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: --priority: 20 is not allowed here (Operation not permitted): ")


def test_a_loop_that_is_told_so_goes_on_without_it_and_says_so(bundle: Path, tmp_path: Path) -> None:
    options = ("--priority", "20", "--if-permitted", "--steps", "5")
    with started(tmp_path, bundle, *options, preexec_fn=without_rights) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "5 steps at 50 Hz" in out
    assert "warning: no real-time priority: 20 is not allowed here (Operation not permitted; " in err
    assert "the loop's thread runs" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--priority", "0"), "--priority"),
        (("--priority", "100"), "--priority"),
        (("--if-permitted",), "--if-permitted: only with --priority"),
        (("--cpu", "999999"), "--cpu: this process may run on core"),
    ],
)
def test_what_cannot_be_is_refused(options: tuple[str, ...], message: str, bundle: Path) -> None:
    code, text = fail("loop", bundle, "--steps", "1", *options)
    assert code == 2 and message in text


def test_a_priority_that_is_none_is_refused_of_a_program_too() -> None:
    with pytest.raises(UsageError, match="--priority: expected 1 to 99, got 100"):
        Scheduling(100).check()


@two_cores
def test_everything_is_put_back_when_the_loop_ends() -> None:
    cpu, *others = sorted(available_cpus())
    done = threading.Event()
    aside = threading.Thread(target=done.wait, daemon=True)
    aside.start()
    assert aside.native_id is not None

    def placed() -> list[set[int]]:
        return [os.sched_getaffinity(thread) for thread in (0, aside.native_id)]

    thread, before = LoopThread(Scheduling(cpu=cpu)), placed()
    try:
        thread.enter()
        assert placed() == [{cpu}, set(others)]
        thread.leave()
        assert placed() == before
    finally:
        os.sched_setaffinity(0, before[0])
        done.set()


def test_the_service_of_a_kit_leaves_it_to_the_loop() -> None:
    lines = (files("lram_export.deploy") / "templates/lram-control.service.in").read_text().splitlines()
    said = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    assert not [key for key in said if key.startswith("CPUScheduling")]
    words = said["ExecStart"].split()
    options = {name for parameter in loop.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
    assert "--if-permitted" in words and words[words.index("--priority") + 1] == said["LimitRTPRIO"]


def test_cores_are_written_as_people_write_them() -> None:
    assert _cores({3}) == "core 3"
    assert _cores({2, 0, 1}) == "cores 0-2"
    assert _cores({0, 1, 5, 7, 8}) == "cores 0-1, 5, 7-8"
