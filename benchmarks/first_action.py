"""Time from process start to the first action: `python benchmarks/first_action.py BUNDLE [--repeat N]`.

Starts fresh processes that load the bundle with its first installed target (without torch, if that is not
`pytorch`) and act once; prints the median and the range in seconds. The page cache is warm after the first.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

PROGRAM = """
import sys, numpy as np
from lram_export import load_policy
policy = load_policy(sys.argv[1])
spec = policy.spec.inputs[0]
policy.act(np.zeros(spec.shape, spec.dtype))
assert "torch" not in sys.modules
"""


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--repeat", type=int, default=10)
    arguments = parser.parse_args()
    seconds = []
    for _ in range(arguments.repeat):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", PROGRAM, arguments.bundle], check=True)
        seconds.append(time.perf_counter() - start)
    print(f"process start to first action: median {statistics.median(seconds):.2f} s")
    print(f"range {min(seconds):.2f} to {max(seconds):.2f} s, {arguments.repeat} processes")


if __name__ == "__main__":
    main()
