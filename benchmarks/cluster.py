"""Two machines on one: Ray nodes in network namespaces, a core each, that evaluate a policy together.

    sudo python benchmarks/cluster.py metaworld.lram [--episodes 20] [--part equal --part speed --part killed]

Every node is a network namespace with an address of its own, at the two ends of a virtual cable, and a core of its own.
Ten tasks of Meta-World are played without Ray on one core; then by a cluster of one node, and by one of two: the
results have to be equal to the bit, and what is said is how much faster two are than one. Then two again, of which one
is killed in the middle (all its processes at once): all results have to be there, and equal.

Needs root, ``ip`` (iproute2), ``taskset``, two cores and nothing else on them. The bundle has to have the target
`native`; docs/evaluation.md makes one.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from lram_export.system.machine import cpu_model

TASKS = (
    "reach", "push", "hammer", "door-open", "drawer-open", "drawer-close", "button-press-topdown", "window-open",
    "window-close", "faucet-open",
)  # fmt: skip
PORT = 6379
ADDRESSES = ("10.177.0.1", "10.177.0.2")
NAMES = ("lram-a", "lram-b")
PARTS = ("equal", "speed", "killed")
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **os.environ,
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_worker_niceness": "0",
    "RAY_enable_metrics_collection": "0",
}
"""Of all processes: a token that only this cluster knows, and workers that are as nice as the process without Ray."""


def main() -> None:
    """Do the parts that are asked for; exit with 1 unless all results are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3, help="How often one node and two are timed, in turns.")
    parser.add_argument("--part", action="append", choices=PARTS)
    arguments = parser.parse_args()
    parts = arguments.part or PARTS
    work = Work(arguments.bundle.resolve(), arguments.episodes)
    print(f"{cpu_model()}; ten tasks x {arguments.episodes} episodes, native, no reference")
    alone, seconds = work.play(["taskset", "-c", "0"])
    print(f"without Ray, one core: {seconds:.1f} s")
    passed = True
    if "equal" in parts or "speed" in parts:
        times: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(arguments.rounds if "speed" in parts else 1):
            for count in (1, 2):
                with nodes(count) as entered:
                    found, seconds = work.play(entered, f"{ADDRESSES[0]}:{PORT}")
                equal = results(found) == results(alone)
                passed &= equal
                times[count].append(found["seconds_played"])
                print(
                    f"{count} node(s): {found['seconds_played']:.1f} s of play, {seconds:.1f} s in all; "
                    f"equal: {equal}; {found['cluster']['done']}"
                )
        best = {count: min(values) for count, values in times.items()}
        print(f"two nodes over one: {best[1] / best[2]:.2f} x (of the shortest of {len(times[1])} each)")
    if "killed" in parts:
        with nodes(2) as entered:
            found, seconds = work.play(entered, f"{ADDRESSES[0]}:{PORT}", kill_at=0.5)
        equal = results(found) == results(alone)
        passed &= equal and len(found["cluster"]["workers_lost"]) > 0
        print(f"one of two nodes killed: {seconds:.1f} s in all; equal: {equal}; {found['cluster']}")
    sys.exit(0 if passed else 1)


class Work:
    """Ten tasks; every run starts with nothing, in a folder of its own."""

    def __init__(self, bundle: Path, episodes: int) -> None:
        self._bundle, self._episodes = bundle, episodes

    def play(
        self, before: list[str], address: str | None = None, kill_at: float | None = None
    ) -> tuple[dict[str, Any], float]:
        """What `evaluate` prints, and how long it took; ``kill_at`` that share of the results the second node ends."""
        with tempfile.TemporaryDirectory() as folder:
            kept = Path(folder) / "results.jsonl"
            command = [*before, str(BIN / "lram-export"), "evaluate", str(self._bundle), "--target", "native"]
            command += ["--no-reference", "--json", "--episodes", str(self._episodes), "--results", str(kept)]
            command += [part for task in TASKS for part in ("--env", f"metaworld/{task}-v3")]
            command += [] if address is None else ["--ray", address]
            began = time.monotonic()
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
            first = last = killed = None
            while process.poll() is None:
                done = len(kept.read_text().splitlines()) - 1 if kept.exists() else 0
                first = first or (time.monotonic() if done > 0 else None)
                if done >= len(TASKS) * self._episodes:
                    last = last or time.monotonic()
                if kill_at is not None and not killed and done >= kill_at * len(TASKS) * self._episodes:
                    killed = kill(NAMES[1])
                    print(f"  killed {killed} processes of the second node after {done} results")
                time.sleep(0.1)
            output = process.communicate()[0]
            seconds = time.monotonic() - began
            if process.returncode or not output.startswith("{"):
                sys.exit(f"evaluate ended with exit code {process.returncode}, and printed {output[:500]!r}")
            found = json.loads(output)
            found["seconds_played"] = (last or time.monotonic()) - (first or began)
            return found, seconds


def results(document: dict[str, Any]) -> list[dict[str, Any]]:
    """All but times."""
    times = ("steps_per_second", "policy_share")
    return [{k: v for k, v in result.items() if k not in times} for result in document["results"]]


@contextmanager
def nodes(count: int) -> Iterator[list[str]]:
    """A cluster of so many nodes; gives what to write before a command that runs on the first."""
    with ExitStack() as stack:
        stack.callback(clean)
        clean()
        for name in NAMES:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "link", "add", "lram0", "netns", NAMES[0], "type", "veth", "peer", "name", "lram0", "netns", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "lram0")
            run("ip", "-n", name, "link", "set", "lram0", "up")
        for number in range(count):
            start(number, stack)
        yield entered(0)


def entered(number: int) -> list[str]:
    """What to write before a command that runs on a node: its network, its core."""
    return ["ip", "netns", "exec", NAMES[number], "taskset", "-c", str(number)]


def start(number: int, stack: ExitStack) -> None:
    """Start a node: the head of the cluster, or one that joins it."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lram-node-", ignore_cleanup_errors=True))
    command = [*entered(number), str(BIN / "ray"), "start", f"--node-ip-address={ADDRESSES[number]}", "--num-cpus=1"]
    command += ["--object-store-memory=200000000", "--disable-usage-stats"]
    if number == 0:
        command += ["--head", f"--port={PORT}", f"--temp-dir={folder}", "--include-dashboard=false"]
    else:
        command += [f"--address={ADDRESSES[0]}:{PORT}"]
    run(*command, env={**ENVIRONMENT, "LRAM_CLUSTER_CACHE": f"{folder}/parcels"})


def kill(name: str) -> int:
    """End all processes of a node at once, as when its power is cut; how many."""
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout.split()
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    return len(found)


def clean() -> None:
    """Remove what is left of both nodes."""
    for name in NAMES:
        while kill(name):
            time.sleep(0.1)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def run(*command: str, env: dict[str, str] | None = None) -> None:
    """Run a command, which must succeed; what it says is shown only if it does not."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")


if __name__ == "__main__":
    main()
