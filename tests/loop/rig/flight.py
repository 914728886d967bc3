"""A loop in a process of its own, and the robot here, in this one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

from tests.loop.rig.faulty import FaultyServer

EXAMPLES = Path(__file__).parents[3] / "examples"
ROBOT = "sockets.robot:SocketRobot"

Moment = Callable[["Flight"], None]


@dataclass(frozen=True)
class Said:
    """The loop's own account, of its last lines."""

    steps: int
    missed: int
    bridged: int
    stale: int
    faults: Counter[str]
    clamped: bool
    slowed: bool


@dataclass
class Flight:
    """A loop and a robot. Used as ``with``: the process is gone afterwards, whatever happens.

    Attributes:
        options: of `lram-export loop`, beside what the server's tolerance says.
        environment: of the loop, beside this process' own.
        moments: at which reading what is done to it.
    """

    folder: Path
    bundle: Path
    server: FaultyServer
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    moments: dict[int, Moment] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    _later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def __enter__(self) -> Flight:
        server, tolerance = self.server, self.server.tolerance
        environment = {"ROBOT_ADDRESS": server.address, "ROBOT_TIMEOUT": str(tolerance.timeout)}
        program = [sys.executable, "-m", "lram_export", "loop", self.bundle, "--robot", ROBOT]
        self.out, self.err = self.folder / "out", self.folder / "err"
        self.process = subprocess.Popen(
            [*program, *tolerance.options, *self.options],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(EXAMPLES), **environment, **self.environment},
        )
        # by threads: what it says must neither wait for a reader nor be held to limits of its own
        pipes = ((self.process.stdout, self.out), (self.process.stderr, self.err))
        self._readers = [threading.Thread(target=_keep, args=pipe, daemon=True) for pipe in pipes]
        for reader in self._readers:
            reader.start()
        self._first = self.server.asked
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join()

    @property
    def asked(self) -> int:
        """Questions for a reading in this flight."""
        return self.server.asked - self._first

    def run(self, until: Callable[[], bool] = lambda: False, seconds: float = 60.0) -> int:
        """Be the robot until the loop ends, or something else is so; the loop's exit code, -1 where it goes on."""
        assert self.process is not None
        end = time.monotonic() + seconds
        while self.process.poll() is None and not until():
            assert time.monotonic() < end, f"after {seconds} s: {self.err.read_text()[-2000:]}"
            self.server.poll(0.02)
            for at in [at for at in self.moments if at <= self.asked]:
                self.moments.pop(at)(self)
            now = time.monotonic()
            for entry in [entry for entry in self._later if entry[0] <= now]:
                self._later.remove(entry)
                entry[1]()
        code = self.process.poll()
        if code is not None:
            for reader in self._readers:
                reader.join()
            self.server.poll(0.0)
            self.server.poll(0.0)  # what it said last, and that it is gone
        return -1 if code is None else code

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Do something then."""
        self._later.append((time.monotonic() + seconds, what))

    def send(self, number: signal.Signals) -> None:
        """A signal to the loop."""
        assert self.process is not None
        self.process.send_signal(number)

    def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT so much later."""
        self.send(signal.SIGSTOP)
        self.later(seconds, lambda: self.send(signal.SIGCONT))

    def said(self) -> Said:
        """The account that it gave at its end."""
        text = self.out.read_text()
        line = re.search(r"^([\d,]+) steps? at .*?([\d,]+) missed deadlines?, ([\d,]+) bridged steps?(.*)$", text, re.M)
        assert line is not None, f"no account: {text!r}, {self.err.read_text()[-2000:]!r}"
        steps, missed, bridged = (_number(line[i]) for i in (1, 2, 3))
        faults = re.search(r"faults: (.*?)(?=, [\d,]+ stale|$)", line[4])
        counts = dict(re.findall(r"([a-z ]+?) ([\d,]+)(?=, |$)", faults[1])) if faults else {}
        stale = re.search(r"([\d,]+) stale action", line[4])
        return Said(
            steps,
            missed,
            bridged,
            _number(stale[1]) if stale else 0,
            Counter({kind.strip(): _number(count) for kind, count in counts.items()}),
            "clamped" in text,
            "slowed" in text,
        )


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def _keep(pipe: IO[bytes], path: Path) -> None:
    with pipe, path.open("wb", buffering=0) as file:
        while text := os.read(pipe.fileno(), 65_536):
            file.write(text)
