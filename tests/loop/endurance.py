"""`python -m tests.loop.endurance FOLDER`: a loop flies for long while everything goes wrong, and neither does anything
wrong nor grows."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from lram_export.flight.reader import read_flight
from lram_export.loop.account import KEPT
from tests.loop.rig.faulty import (
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
from tests.loop.rig.flight import Flight, Said
from tests.loop.rig.subject import write_subject
from tests.loop.rig.wall_clock import WallClock

MOST = {NAN: 10, OUT: 10, SHAPE: 10, FROZEN: 20, SILENT: 10, LATE: 200, LATE_TAKEN: 100, HANG: 100, DISCONNECT: 100}
"""Kind of a fault -> the largest amount: readings, or milliseconds."""

PAUSE, SWAP, JUMP = "stopped for a while", "another bundle", "another wall clock"
EVERY = 2.0
"""Seconds between two faults, on average."""

RARE = {PAUSE: 30.0, SWAP: 60.0, JUMP: 120.0}
"""Seconds between two of what happens to the loop itself, on average."""

LONGEST_PAUSE = 2.0
FLIGHT = "flight.mcap"
MOST_GROWTH = 4 << 20
"""Bytes per hour, and in all of a shorter run: what an allocator may do that is in no hurry."""


@dataclass
class Watched:
    """What the loop's process has, once a second.

    Attributes:
        samples: (seconds, bytes of memory, file descriptors, threads).
        processor: seconds of it in the end.
    """

    samples: list[tuple[float, int, int, int]] = field(default_factory=list)
    processor: float = 0.0

    def look(self, seconds: float, process: int) -> None:
        """Take a sample."""
        folder = Path(f"/proc/{process}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        memory, threads = int(status["VmRSS"].split()[0]) << 10, int(status["Threads"])
        times = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
        self.processor = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
        self.samples.append((seconds, memory, len(list((folder / "fd").iterdir())), threads))

    def settled(self, after: float) -> np.ndarray:
        """Samples after so many seconds; rows as in ``samples``."""
        return np.array([sample for sample in self.samples if sample[0] >= after], float)


def schedule(seed: int, seconds: float, rate: float) -> tuple[list[Fault], list[tuple[int, str, float]]]:
    """What happens at which reading: faults of the robot; what happens to the loop, with an amount from 0 to 1."""
    dice, last = random.Random(seed), int(seconds * rate)
    faults, at = [], rate
    while (at := at + dice.expovariate(1 / (EVERY * rate)) + 30) < last:
        kind = dice.choice(list(MOST))
        faults.append(Fault(int(at), kind, dice.randint(1, MOST[kind])))
    moments = []
    for kind, every in RARE.items():
        at = rate
        while (at := at + dice.expovariate(1 / (every * rate)) + 2 * rate) < last:
            moments.append((int(at), kind, dice.random()))
    return faults, moments


def fly(folder: Path, seconds: float, seed: int, tolerance: Tolerance, record: bool) -> list[str]:
    """Fly, and write the report; what went wrong, in lines."""
    bundles = [write_subject(folder / f"version{i}.lram", i, tolerance.rate) for i in (1, 2)]
    flown, clock = folder / "flown.lram", WallClock(folder)
    shutil.copytree(bundles[0], flown)
    faults, moments = schedule(seed, seconds, tolerance.rate)
    server = FaultyServer(f"unix:{folder / 'arm'}", tolerance, faults)
    options = ("--record", str(folder / FLIGHT)) if record else ()
    flight = Flight(folder, flown, server, options, environment=clock.environment)
    happened: Counter[str] = Counter()

    def happen(kind: str, amount: float) -> None:
        happened[kind] += 1
        if kind == PAUSE:
            flight.pause(LONGEST_PAUSE * amount)
        elif kind == JUMP:
            clock.jump(int(7200 * (amount - 0.5)) or 1)
        else:
            shutil.copytree(bundles[happened[SWAP] % 2], folder / "new.lram")
            flown.rename(folder / "old.lram")
            (folder / "new.lram").rename(flown)
            shutil.rmtree(folder / "old.lram")
            flight.send(signal.SIGHUP)

    for at, kind, amount in moments:
        flight.moments[at] = lambda _, kind=kind, amount=amount: happen(kind, amount)  # type: ignore[misc]
    watched, code = Watched(), None
    with flight:
        assert flight.process is not None
        if flight.run(until=lambda: flight.asked > 0) != -1:
            raise SystemExit(f"the loop did not start: {flight.err.read_text().strip()}")
        start, looked = time.monotonic(), -1
        while code is None and (passed := time.monotonic() - start) < seconds:
            if int(passed) > looked:
                looked = int(passed)
                watched.look(passed, flight.process.pid)
                if looked % 300 == 0:
                    print(f"{looked // 60} minutes: {server.arm.verdict.commands} commands", flush=True)
            found = flight.run(until=partial(_is_past, start + looked + 1))
            code = None if found == -1 else found
        flight.send(signal.SIGCONT)
        flight.send(signal.SIGTERM)
        code = flight.run() if code is None else code
    server.close()
    return report(folder, Result(time.monotonic() - start, seed, code, server, flight, happened, watched))


def _is_past(moment: float) -> bool:
    return time.monotonic() >= moment


@dataclass(frozen=True)
class Result:
    """A flight that is over."""

    seconds: float
    seed: int
    code: int
    server: FaultyServer
    flight: Flight
    happened: Counter[str]
    watched: Watched


def report(folder: Path, result: Result) -> list[str]:
    """Write ``report.md``; what went wrong, in lines."""
    said, server = result.flight.said(), result.server
    settled_at = KEPT / server.tolerance.rate  # until then the loop keeps one more time with every step
    settled_at = settled_at if result.seconds > 2 * settled_at else result.seconds / 2
    settled = result.watched.settled(settled_at)
    memory, growth = settled[:, 1], _growth(settled)
    wrong = _wrong(result, said, settled, growth)
    recorded = "none"
    if (folder / FLIGHT).exists():
        file = read_flight(folder / FLIGHT)
        recorded = (
            f"{file.count:,} steps, {file.missing:,} left out, {(folder / FLIGHT).stat().st_size / 2**20:.1f} MiB"
        )
        if not file.whole or file.count + file.missing != said.steps:
            wrong.append(f"recorded: {recorded}, of {said.steps:,}")
    verdict, hours = server.arm.verdict, result.seconds / 3600
    rows = {
        "duration": f"{result.seconds:.0f} s at {server.tolerance.rate:g} Hz, seed {result.seed}",
        "steps": f"{said.steps:,}, commands that the motors obeyed: {verdict.commands:,}",
        "missed deadlines": f"{said.missed:,} ({100 * said.missed / said.steps:.3f}% of steps)",
        "steps bridged": f"{said.bridged:,}",
        "stale actions that were not sent": f"{said.stale:,}",
        "oldest reading that the motors moved by": f"{1000 * verdict.oldest:.0f} ms; the bound is "
        f"{1000 * server.tolerance.stale:.0f} ms, by the loop's clock",
        "longest time between two commands in motion": f"{1000 * verdict.longest:.0f} ms",
        "stops by the robot itself": _list(verdict.stops),
        "actions that the robot refused": _list(Counter({reason.name: n for reason, n in server.refused.items()})),
        "commands by bundle": _list(Counter({f"version {n}": count for n, count in verdict.versions.items()})),
        "memory": f"{memory[0] / 2**20:.1f} MiB after {settled[0, 0]:.0f} s, {memory[-1] / 2**20:.1f} MiB at the end, "
        f"largest {memory.max() / 2**20:.1f} MiB",
        "slope of the memory": f"{growth / 2**20:+.2f} MiB per {'hour' if hours >= 1 else 'run'}; "
        f"at most {MOST_GROWTH >> 20}",
        "file descriptors": f"{settled[:, 2].min():.0f} to {settled[:, 2].max():.0f}",
        "threads": f"{settled[:, 3].min():.0f} to {settled[:, 3].max():.0f}",
        "processor": f"{100 * result.watched.processor / result.seconds:.1f}% of a core",
        "recorded": recorded,
        "machine": f"{os.cpu_count()} cores; load of the last 15 minutes, with this flight: {os.getloadavg()[2]:.1f}",
        "the loop's own account": result.flight.out.read_text().strip().replace("\n", "; "),
    }
    lines = ["# Endurance", "", "| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]
    lines += ["", "| happened | times |", "|---|---|"]
    lines += [f"| {kind} | {count} |" for kind, count in sorted((server.injected + result.happened).items())]
    lines += ["", "| fault | injected | counted by the loop |", "|---|---|---|"]
    kinds = sorted({*server.expected, *said.faults})
    lines += [f"| {kind} | {server.expected[kind]} | {said.faults[kind]} |" for kind in kinds]
    lines += ["", f"wrong: {len(wrong)}", "", *(f"- {line}" for line in wrong)]
    text = "\n".join(lines) + "\n"
    (folder / "report.md").write_text(text)
    print(text)
    return wrong


def _wrong(result: Result, said: Said, settled: np.ndarray, growth: float) -> list[str]:
    server, wrong = result.server, list(result.server.arm.verdict.wrong)
    if result.code != 0:
        wrong.append(f"the loop ended with {result.code}: {result.flight.err.read_text().splitlines()[-1]}")
    wrong += uncounted(server.expected, said.faults)
    if growth > MOST_GROWTH:
        wrong.append(f"memory grows by {growth / 2**20:.1f} MiB per hour")
    for name, column in (("file descriptors", settled[:, 2]), ("threads", settled[:, 3])):
        if np.median(column[-len(column) // 4 :]) > np.median(column[: len(column) // 4 + 1]):
            wrong.append(f"{name} become more: {column[0]:.0f}, then {column[-1]:.0f}")
    return wrong


def _growth(settled: np.ndarray) -> float:
    """Bytes by which memory grows in an hour, or in all of a shorter run: a line through the samples."""
    slope = np.polyfit(settled[:, 0], settled[:, 1], 1)[0]
    return float(slope * min(3600.0, settled[-1, 0] - settled[0, 0] + 1))


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items()) or "none"


def run(arguments: Sequence[str] | None = None) -> int:
    """Fly; 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the report goes")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--no-record", action="store_true", help="without the flight recorder")
    chosen = parser.parse_args(arguments)
    shutil.rmtree(chosen.folder, ignore_errors=True)
    chosen.folder.mkdir(parents=True)
    tolerance = Tolerance(rate=chosen.rate, watchdog=0.3)
    return int(bool(fly(chosen.folder.resolve(), chosen.seconds, chosen.seed, tolerance, not chosen.no_record)))


if __name__ == "__main__":
    sys.exit(run())
