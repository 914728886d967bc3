"""
Which precision?
================

Fewer bits make a policy smaller, and often faster. What do they cost? Here one
checkpoint goes over all of them: an xLSTM of 0.6 million weights that does ten
Meta-World tasks (``examples/metaworld/checkpoints``), on the target ``native``. What
the precisions are is told in :doc:`quantization </quantization>`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

examples = Path(sys.argv[0]).resolve().parents[1]
work = Path(tempfile.mkdtemp())
(work / "xlstm").symlink_to(examples / "metaworld" / "checkpoints" / "xlstm")
programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def sh(command: str) -> str:
    """Run a line in the working folder, and show it; returns what it says."""
    told = {**os.environ, "PATH": programs, "OMP_NUM_THREADS": "1"}
    print("$", command.replace(" --", " \\\n    --") if len(command) > 80 else command)
    done = subprocess.run(
        command,
        shell=True,
        cwd=work,
        env=told,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# %%
# Steps to calibrate on
# ---------------------
# Rounding every weight to its nearest code wastes accuracy. A few episodes show what
# the policy really sees, and codes are chosen so that errors cancel there. Two of
# three episodes are calibrated on, the third judges.

sh(
    "lram-export export xlstm/model.zip -o fp32.lram --task metaworld/reach-v2 "
    "--target native --quiet"
)
sh(
    "lram-export record fp32.lram --env metaworld/drawer-close-v3 --episodes 3 "
    "-o steps.npz --quiet"
)

# %%
# That this page is soon made, the first 80 steps of each are enough here; give yours
# whole, and of every task.

steps = dict(np.load(work / "steps.npz"))
early = np.arange(600) % 200 < 80
steps = {
    name: array[early] if len(array) == 600 else array for name, array in steps.items()
}
assert steps["is_first"].sum() == 3 and len(steps["observation"]) == 240
np.savez(work / "early.npz", **steps)

# %%
# The sweep
# ---------
# One command exports, verifies, compares, times and plays them all. All times come
# from one run, in turns.

PRECISIONS = ("fp32", "int8", "int4")
swept = json.loads(
    sh(
        "lram-export sweep xlstm/model.zip -o grid --task metaworld/reach-v2 "
        f"--targets native --precisions {','.join(PRECISIONS)} --calibration early.npz "
        "--reference-steps 16 --steps 100 --threads 1 "
        "--env metaworld/drawer-close-v3 --episodes 2 --json --quiet"
    )
)
cells = {cell["precision"]: cell for cell in swept["cells"]}
assert [cell["status"] for cell in cells.values()] == ["done"] * len(PRECISIONS)

print(f"{swept['cpu']}, 1 thread\n")
print("precision      size     p50    differ   > 1 bin   succeeded")
numbers = {}
for name, cell in cells.items():
    cost = cell["disagreement"]
    played = cell["environments"]["metaworld/drawer-close-v3"]["episodes"]
    megabytes, milliseconds = cell["size"] / 1e6, cell["speed"]["p50_ms"]
    differ = 100 * cost["actions_different"] / cost["actions"]
    beyond = 100 * cost["beyond_one_bin"] / cost["actions"]
    succeeded = sum(episode["success"] for episode in played)
    print(
        f"{name:9} {megabytes:6.2f} MB {milliseconds:5.2f} ms {differ:7.1f}%"
        f" {beyond:8.1f}% {succeeded:6} of {len(played)}"
    )
    numbers[name] = megabytes, milliseconds, beyond

# %%
# ``differ`` is the share of action values that are not the float32 reference's, over
# the episode that nothing was calibrated on; ``> 1 bin`` are those that are off by
# more than one of the 256 values an action can have. Each bundle was held to the
# PyTorch model *of its precision* when it was exported: a difference here is what the
# precision costs, and no error of the engine.

figure, halves = plt.subplots(
    1, 3, figsize=(8.6, 2.8), layout="constrained", sharey=True
)
for axes, title, unit, values in zip(
    halves,
    ("size", "a step, median", "actions off by more than a bin"),
    ("{:.2f} MB", "{:.2f} ms", "{:.1f}%"),
    zip(*numbers.values(), strict=True),
    strict=True,
):
    bars = axes.barh(list(numbers), values, color="#0072b2", height=0.6)
    axes.bar_label(bars, [unit.format(value) for value in values], padding=4)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlim(0, 1.35 * max(values))
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
halves[0].invert_yaxis()
plt.show()

# %%
# Which one, then?
# ----------------
# 1. **Start with** ``int8``, **calibrated**: a third of the size, and few actions that
#    differ.
# 2. **Stay with** ``fp32`` where neither size nor time matters: there is nothing to
#    prove then.
# 3. ``int4`` **needs a closed loop.** Two episodes say little: a policy that succeeds
#    half of the time does so twice in a row one time in four. Play 50 with
#    ``lram-export evaluate``, or let ``--precision auto`` keep more bits in the
#    matrices that need them.
#
# What a small policy gains in time says nothing of a large one, whose weights do not
# fit into the processor's cache: :doc:`the results </results>` have the published
# sizes. On the robot, ``lram-export bench`` tells.

size, _, off = zip(*numbers.values(), strict=True)
assert off[0] == 0 and off[1] < off[2]
assert size[2] < size[1] < size[0] / 2
shutil.rmtree(work)

# %%
# The bundles of the sweep are ordinary ones: ``lram-export deploy grid/int8.lram``
# packs the one that you choose.
