"""What a control loop takes from a process beside it: `python benchmarks/beside_a_sensor.py BUNDLE [--target NAME]`.

A sensor process wakes at 100 Hz and works for half a millisecond at every tick, on two cores; a tick is late where it
wakes more than a millisecond after it was due. On the same cores a control loop rehearses at 50 Hz, or nothing does, in
windows that take turns. Printed are late ticks with and without the loop, and what the loop takes of a core: processor
time of all its threads, from its first step to its last.

`--priority`, `--threads` and `--spin` are the loop's: `--spin` lets its threads look for work between two steps, as
they do not by themselves at that rate.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from statistics import median

SENSOR = """
import json, sys, time

period, seconds, late = 1 / float(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
delays = []
due = time.perf_counter()
for _ in range(round(seconds / period)):
    due += period
    time.sleep(max(due - time.perf_counter(), 0))
    delays.append(time.perf_counter() - due)
    while time.perf_counter() - due - delays[-1] < 0.0005:
        pass
    if delays[-1] > period:  # what was missed is not made up for
        due += delays[-1] // period * period
print(json.dumps([sum(delay > late for delay in delays), len(delays), sorted(delays)[int(0.99 * len(delays))]]))
"""

LOOP = """
import json, sys, time
from pathlib import Path

from lram_export import load_policy
from lram_export.interpolation import Between
from lram_export.loop.control import Loop, LoopOptions
from lram_export.loop.rehearsal import Rehearsal
from lram_export.loop.scheduling import Scheduling
from lram_export.loop.warmup import warm_up
from lram_export.rates import may_spin

path, target, rate = Path(sys.argv[1]), sys.argv[2] or None, float(sys.argv[3])
threads, priority, spin = (int(word) for word in sys.argv[4:7])
with load_policy(path, target, threads=threads or None, spin=bool(spin) or may_spin(rate)) as policy:
    warm_up(policy)
    robot, options = Rehearsal.of_bundle(path, policy), LoopOptions(rate, Between())
    loop = Loop(policy, robot, options, scheduling=Scheduling(priority or None))
    first = robot.reset

    def reset():
        global began, used
        print("running", flush=True)
        began, used = time.perf_counter(), time.process_time()
        return first()

    robot.reset = reset
    from threading import Thread

    Thread(target=lambda: (sys.stdin.readline(), loop.end()), daemon=True).start()
    loop.run()
    used, passed = time.process_time() - used, time.perf_counter() - began
print(json.dumps([used / passed, loop.account.steps, loop.account.missed]))
"""


def sensor(arguments: argparse.Namespace) -> tuple[int, int, float]:
    """Late ticks, ticks, and the 99th percentile of the delays, seconds, of one window."""
    words = [str(arguments.sensor_rate), str(arguments.seconds), str(arguments.late)]
    done = subprocess.run([sys.executable, "-c", SENSOR, *words], check=True, stdout=subprocess.PIPE)
    late, ticks, p99 = json.loads(done.stdout)
    return late, ticks, p99


def beside_loop(arguments: argparse.Namespace) -> tuple[tuple[int, int, float], tuple[float, int, int]]:
    """A window of the sensor beside the loop, and the loop's share of a core, steps and missed deadlines."""
    words = [arguments.bundle, arguments.target or "", *map(str, (arguments.rate, arguments.threads))]
    words += [str(arguments.priority), str(int(arguments.spin))]
    program = [sys.executable, "-c", LOOP, *words]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as loop:
        assert loop.stdout is not None
        if loop.stdout.readline() != "running\n":
            sys.exit("the loop did not start")
        seen = sensor(arguments)
        out, _ = loop.communicate("end\n")
    share, steps, missed = json.loads(out)
    return seen, (share, steps, missed)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--target", help="default: the bundle's first that is installed")
    parser.add_argument("--rate", type=float, default=50.0, help="of the loop, Hz")
    parser.add_argument("--sensor-rate", type=float, default=100.0, help="Hz")
    parser.add_argument("--late", type=float, default=0.001, help="seconds after which a tick is late")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a window")
    parser.add_argument("--repeat", type=int, default=5, help="windows with the loop, and as many without")
    parser.add_argument("--cpus", default="0,1", help="the cores of both")
    parser.add_argument("--threads", type=int, default=0, help="of the runtime; 0: its default")
    parser.add_argument("--priority", type=int, default=0, help="real-time priority of the loop's thread; 0: none")
    parser.add_argument("--spin", action="store_true")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {int(cpu) for cpu in arguments.cpus.split(",")})
    alone, beside, loops = [], [], []
    for _ in range(arguments.repeat):
        alone.append(sensor(arguments))
        seen, loop = beside_loop(arguments)
        beside.append(seen)
        loops.append(loop)
    for name, windows in (("alone", alone), ("beside", beside)):
        late, ticks = sum(w[0] for w in windows), sum(w[1] for w in windows)
        p99 = 1e3 * median(w[2] for w in windows)
        print(f"sensor {name:7} {late:6} of {ticks} ticks late ({100 * late / ticks:.2f}%), p99 {p99:.2f} ms after due")
    share, steps, missed = median(w[0] for w in loops), sum(w[1] for w in loops), sum(w[2] for w in loops)
    print(f"loop: {100 * share:.2f}% of a core (median of {len(loops)} windows), {missed} of {steps} deadlines missed")


if __name__ == "__main__":
    main()
