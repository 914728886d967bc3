"""A fleet of simulated robots on one server: `python benchmarks/fleet.py BUNDLE [--robots N] [--rate HZ] ...`.

`lram-export serve` runs in a process of its own, the robots in a few others, many in each, every one at the rate and
out of phase with the others. From time to time a robot starts an episode, or leaves its seat and takes another; every
fourth reaches the server through a relay, which loses its connection instead of an answer. Afterwards every action that
a robot was given is compared, bit for bit, with that of a policy of its own that saw the same: `--private` says on how
many robots, all by default. Prints the time from an observation to its action, the periods that were missed, and what
the server says at its end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export import RemotePolicy, load_policy
from lram_export.errors import RemoteError
from lram_export.loop.clock import Clock
from lram_export.policy import observations_of
from lram_export.system.machine import cpu_model

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.serving.network import Network  # the relay that loses connections

POOL = 64
"""Observations that a robot sees again and again."""
RESET, LEAVE, CUT = 1 / 200, 1 / 2000, 1 / 100
"""How likely each is, per step; a cut for those behind a relay."""
RELAYED = 4
"""One in so many robots is."""


@dataclass
class Record:
    """What became of one robot; per step whether it began an episode or took another seat, and its action."""

    number: int
    events: list[str] = field(default_factory=list)
    actions: list[NDArray[Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    missed: int = 0
    cuts: int = 0
    failed: str = ""
    cpu: float = 0.0
    """Seconds of its process's processor, for as many robots as there are in it."""


def seen(spec: Any, number: int) -> list[dict[str, NDArray[Any]]]:
    """The observations of a robot."""
    random = np.random.default_rng(number)
    found = []
    for _ in range(POOL):
        one = {}
        for tensor in observations_of(spec):
            shape = tensor.shape[1:]
            whole = tensor.dtype == "uint8"
            one[tensor.name] = (
                random.integers(0, 256, shape, np.uint8) if whole else random.standard_normal(shape).astype(np.float32)
            )
        found.append(one)
    return found


def reward_of(number: int, step: int) -> float:
    """What a robot got for the step before."""
    return ((7 * number + step) % 11) / 10


class Robot:
    """One robot at its rate; made in the process that runs it."""

    def __init__(self, number: int, url: str, rate: float, outputs: list[str]) -> None:
        self.record, self._rate = Record(number), rate
        self._random = np.random.default_rng(10_000 + number)
        self._relay: Network | None = None
        if number % RELAYED == 0:
            host, _, port = url.removeprefix("grpc://").rpartition(":")
            self._relay = Network(host, int(port))
            url = f"grpc://127.0.0.1:{self._relay.port}"
        self._url, self._outputs = url, outputs
        self._policy = self._seat()
        self._seen = seen(self._policy.spec, number)
        self._fresh = True

    def _seat(self) -> RemotePolicy:
        return RemotePolicy(self._url, timeout=5.0, robot=f"robot {self.record.number}", outputs=self._outputs)

    def run(self, until: float) -> None:
        """Act at the rate until a time of the monotonic clock; periods that are missed are left out, as in a loop."""
        record, clock = self.record, Clock(1 / self._rate)
        time.sleep(self._random.random() * clock.period)
        clock.start()
        try:
            while time.monotonic() < until:
                self._act()
                clock.wait()
        except RemoteError as error:
            record.failed = str(error)
        finally:
            record.missed = clock.missed
            self._policy.close()
            if self._relay is not None:
                self._relay.close()

    def _act(self) -> None:
        record, event = self.record, "step"
        chance = self._random.random()
        if chance < RESET:
            event = "reset"
            self._policy.reset()
        elif chance < RESET + LEAVE:
            event = "leave"
            self._policy.close()
            self._policy = self._seat()
        elif chance < RESET + LEAVE + CUT and self._relay is not None:
            record.cuts += 1
            self._relay.lose_the_next_answer()
        fresh = self._fresh or event != "step"
        number = len(record.actions)
        reward = None if fresh else reward_of(record.number, number)
        began = time.perf_counter()
        action = self._policy.act(self._seen[number % POOL], reward)
        record.seconds.append(time.perf_counter() - began)
        record.events.append(event)
        record.actions.append(np.asarray(action))
        self._fresh = False


def robots(numbers: list[int], url: str, rate: float, until: float, outputs: list[str], out: Any) -> None:
    """A process of robots, each in a thread, which waits nearly always."""
    fleet = [Robot(number, url, rate, outputs) for number in numbers]
    threads = [threading.Thread(target=robot.run, args=(until,)) for robot in fleet]
    began = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for robot in fleet:
        robot.record.cpu = (time.process_time() - began) / len(fleet)
    out.put([robot.record for robot in fleet])


def cpu_seconds(process: int) -> float:
    """What a process has used of processors so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def same(records: list[Record], bundle: str, target: str | None) -> tuple[int, int]:
    """Actions that were compared, and how many differ."""
    compared = different = 0
    with load_policy(bundle, target, threads=1, batch=1) as policy:
        for record in records:
            observed = seen(policy.spec, record.number)
            policy.reset(target_return=None if policy.task is None else policy.task.target_return)
            for step, (event, action) in enumerate(zip(record.events, record.actions, strict=True)):
                if event != "step":
                    policy.reset()
                fresh = step == 0 or event != "step"
                own = policy.act(observed[step % POOL], None if fresh else reward_of(record.number, step))
                compared += 1
                different += not np.array_equal(np.asarray(own), action)
    return compared, different


def main() -> None:
    """Serve, act, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--target")
    parser.add_argument("--robots", type=int, default=32)
    parser.add_argument("--rate", type=float, default=20.0, help="Hz")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--window", type=float, default=0.0, help="milliseconds")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--processes", type=int, default=2, help="that the robots run in")
    parser.add_argument("--private", type=int, help="robots whose actions are compared; default: all")
    parser.add_argument("--all-outputs", action="store_true", help="logits are sent, too")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    command = [sys.executable, "-m", "lram_export", "serve", chosen.bundle, "--listen", "127.0.0.1:0", "--json", "-q"]
    command += ["--robots", str(chosen.robots), "--window", str(chosen.window)]
    command += [] if chosen.target is None else ["--target", chosen.target]
    command += [] if chosen.threads is None else ["--threads", str(chosen.threads)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        said, _ = json.JSONDecoder().raw_decode(document(server.stdout))
        began = cpu_seconds(server.pid)
        context = mp.get_context("spawn")
        out = context.Queue()
        until = time.monotonic() + 5 + chosen.seconds
        parts = [list(range(chosen.robots))[n :: chosen.processes] for n in range(chosen.processes)]
        outputs = [] if chosen.all_outputs else ["action"]
        workers = [
            context.Process(target=robots, args=(part, said["url"], chosen.rate, until, outputs, out)) for part in parts
        ]
        for worker in workers:
            worker.start()
        records = sorted((r for _ in workers for r in out.get(timeout=chosen.seconds + 120)), key=lambda r: r.number)
        for worker in workers:
            worker.join()
        used = cpu_seconds(server.pid) - began
        server.send_signal(signal.SIGTERM)
        told = json.loads(server.stdout.read())
    finally:
        server.kill()
        server.wait()
    compared, different = same(records[: chosen.private], chosen.bundle, said["target"])
    milliseconds = 1e3 * np.concatenate([record.seconds for record in records])
    p50, p99, p999 = (float(p) for p in np.percentile(milliseconds, (50, 99, 99.9)))
    found = {
        "processor": cpu_model(),
        "bundle": said["bundle"],
        "target": said["target"],
        "precision": said["precision"],
        "threads": said["threads"],
        "robots": chosen.robots,
        "rate_hz": chosen.rate,
        "period_ms": 1e3 / chosen.rate,
        "window_ms": chosen.window,
        "seconds": chosen.seconds,
        "steps": len(milliseconds),
        "p50_ms": p50,
        "p99_ms": p99,
        "p99.9_ms": p999,
        "max_ms": float(milliseconds.max()),
        "server_cpu_ms_per_step": 1e3 * used / len(milliseconds),
        "robots_cpu_ms_per_step": 1e3 * sum(record.cpu for record in records) / len(milliseconds),
        "missed_periods": sum(record.missed for record in records),
        "connections_cut": sum(record.cuts for record in records),
        "episodes": sum(event != "step" for record in records for event in record.events) + chosen.robots,
        "seats_changed": sum(event == "leave" for record in records for event in record.events),
        "failed": [f"robot {record.number}: {record.failed}" for record in records if record.failed],
        "actions_compared": compared,
        "actions_different": different,
        "server": told,
    }
    if chosen.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:18} {value}")
    sys.exit(1 if different or found["failed"] else 0)


def document(stream: Any) -> str:
    """The first JSON document of a stream, whose last line is a brace."""
    lines = []
    while not lines or lines[-1].rstrip() != "}":
        line = stream.readline()
        if not line:
            sys.exit("the server did not start")
        lines.append(line)
    return "".join(lines)


if __name__ == "__main__":
    main()
