"""Processes end with the one that started them, leave interrupts to it, and pass errors on."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lram_export import errors
from lram_export.errors import EnvironmentFailure, LramError, TargetNotInstalledError
from lram_export.targets.tensorrt.cuda import CudaError
from tests.conftest import ExportFunction

BUSY = """
import sys
from lram_export.benchmark.bench import _worker
from lram_export.benchmark.worker import StepJob
if __name__ == "__main__":
    with _worker(StepJob("onnxruntime", sys.argv[1], 1, None)) as worker:
        print(worker._process.pid, flush=True)
        worker.ask("window", 10**9, None)
"""


@pytest.fixture
def busy(exported: ExportFunction, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A benchmark in a session of its own: its process, and the number of its worker, which is at work."""
    bundle = exported("state_m", targets=("onnxruntime",))
    program = tmp_path / "busy.py"
    program.write_text(BUSY)
    with subprocess.Popen(
        [sys.executable, str(program), str(bundle)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def ended(number: int, seconds: float = 30) -> bool:
    """Whether a process is gone before the time is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":  # ended; whoever inherited it has not noticed yet
            return True
        time.sleep(0.1)
    return False


class TestWorkers:
    def test_a_worker_at_work_ends_with_a_killed_parent(self, busy: tuple[subprocess.Popen[str], int]) -> None:
        process, worker = busy
        process.kill()
        process.wait()
        assert ended(worker)

    def test_an_interrupt_is_the_parents(self, busy: tuple[subprocess.Popen[str], int]) -> None:
        """Of a terminal, where all processes get it: one traceback, the parent's, and no worker is left."""
        process, worker = busy
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert stderr.count("Traceback") == 1 and stderr.rstrip().endswith("KeyboardInterrupt")
        assert ended(worker)


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LramError)]


@pytest.mark.parametrize("kind", [*KINDS, CudaError])
def test_errors_pass_between_processes(kind: type[LramError]) -> None:
    made: list[LramError] = [kind("one line")]
    if kind is EnvironmentFailure:
        made.append(EnvironmentFailure.of("gym/x", "step", ValueError("broken")))
    if kind is TargetNotInstalledError:
        made.append(TargetNotInstalledError.of("tvm", "tvm", "tvm"))
    for error in made:
        passed = pickle.loads(pickle.dumps(error))
        assert type(passed) is kind and str(passed) == str(error) and passed.exit_code == error.exit_code


HELD = """
import multiprocessing
import signal
from lram_export.system.processes import interrupts_held

def blocked():
    assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())

if __name__ == "__main__":
    processes = [multiprocessing.get_context("spawn").Process(target=blocked) for _ in range(2)]
    for process in processes:
        with interrupts_held():
            process.start()
        process.join()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    print([process.exitcode for process in processes])
"""


def test_no_process_hears_of_an_interrupt_not_even_the_first(tmp_path: Path) -> None:
    program = tmp_path / "held.py"
    program.write_text(HELD)
    ran = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True)
    assert ran.stdout == "[0, 0]\n", ran.stderr
