"""What threads of a runtime do after a step: `python benchmarks/spinning.py BUNDLE [--target NAME ...] [--threads N]`.

For each target, in fresh processes, with threads that may look for work between two steps and with threads that shall
not: the processor time of the whole process in a tenth of a second after a step, in milliseconds, median of 20 steps.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from lram_export import Bundle
from lram_export.verification.verify import installed_targets

PROGRAM = """
import sys, time
from statistics import median

import numpy as np

from lram_export import load_policy
from lram_export.policy import observations_of

spent = []
with load_policy(sys.argv[1], sys.argv[2], threads=int(sys.argv[3]), spin=sys.argv[4] == "spin") as policy:
    zeros = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in observations_of(policy.spec)}
    nothing = None if policy.spec.input("reward") is None else np.zeros(policy.spec.batch_size)
    for _ in range(20):
        policy.act(zeros, nothing)
        before = time.process_time()
        time.sleep(0.1)
        spent.append(time.process_time() - before)
print(1e3 * median(spent))
"""


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--target", action="append", help="may be repeated; default: all that are installed")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    print(f"{'target':12} {'may spin':>10} {'shall not':>10}")
    for target in chosen.target or installed_targets(Bundle.open(Path(chosen.bundle)), ()):
        found = []
        for word in ("spin", "sleep"):
            program = [sys.executable, "-c", PROGRAM, chosen.bundle, target, str(chosen.threads), word]
            done = subprocess.run(program, check=True, stdout=subprocess.PIPE)
            found.append(float(done.stdout))
        print(f"{target:12} {found[0]:10.2f} {found[1]:10.2f}")


if __name__ == "__main__":
    main()
