"""The first action after the warm-up against those that follow: `python benchmarks/after_warm_up.py BUNDLE
[--target NAME ...] [--repeat N]`.

Starts fresh processes, targets in turns, that do what `lram-export loop` does before there are motors, and then loop
over the bundle's recorded steps at a rate. A time is from a reading to the action that is sent. The ratio of a process
is its first time divided by the median of all; printed are the median and the largest ratio of a target's processes.
With `--cold` without the warm-up. Times of a machine that does something else meanwhile are worthless, unless the loop
goes ahead of that (`--priority`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

from lram_export import Bundle
from lram_export.verification.verify import installed_targets

PROGRAM = """
import json, sys, time
from pathlib import Path

from lram_export import load_policy
from lram_export.interpolation import Between
from lram_export.loop.control import Loop, LoopOptions
from lram_export.loop.rehearsal import Rehearsal
from lram_export.loop.scheduling import Scheduling
from lram_export.loop.warmup import warm_up
from lram_export.rates import may_spin


class Timed(Rehearsal):
    def observe(self):
        reading = super().observe()
        self.read = time.perf_counter()
        return reading

    def act(self, action):
        seconds.append(time.perf_counter() - self.read)
        return super().act(action)


path, target, rate, steps = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
warm, scheduling = sys.argv[5] == "warm", Scheduling(int(sys.argv[6]) or None)
seconds = []
with load_policy(path, target, spin=may_spin(rate)) as policy:
    if warm:
        warm_up(policy)
    robot, options = Timed.of_bundle(path, policy), LoopOptions(rate, Between(), steps)
    Loop(policy, robot, options, scheduling=scheduling).run()
print(json.dumps(seconds))
"""


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--target", action="append", help="may be repeated; default: all that are installed")
    parser.add_argument("--rate", type=float, default=50.0, help="Hz")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=10, help="processes per target")
    parser.add_argument("--cold", action="store_true", help="without the warm-up")
    parser.add_argument("--priority", type=int, default=0, help="real-time priority of the loop; 0: none")
    chosen = parser.parse_args()
    targets = chosen.target or installed_targets(Bundle.open(Path(chosen.bundle)), ())
    times: dict[str, list[list[float]]] = {target: [] for target in targets}
    for _ in range(chosen.repeat):
        for target in targets:
            words = [chosen.bundle, target, str(chosen.rate), str(chosen.steps), "cold" if chosen.cold else "warm"]
            words.append(str(chosen.priority))
            done = subprocess.run([sys.executable, "-c", PROGRAM, *words], check=True, stdout=subprocess.PIPE)
            times[target].append(json.loads(done.stdout))
    print(f"{chosen.repeat} processes per target, {chosen.steps} steps at {chosen.rate:g} Hz")
    print(f"{'target':12} {'median ms':>10} {'first ms':>10} {'ratio':>7} {'largest':>8}")
    for target, runs in times.items():
        ratios = [run[0] / median(run) for run in runs]
        first, usual = median(run[0] for run in runs), median(median(run) for run in runs)
        print(f"{target:12} {1e3 * usual:10.3f} {1e3 * first:10.3f} {median(ratios):7.2f} {max(ratios):8.2f}")


if __name__ == "__main__":
    main()
