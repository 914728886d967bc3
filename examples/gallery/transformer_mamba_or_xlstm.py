"""
Transformer, Mamba or xLSTM?
============================

Three policies of about the same size, some 0.6 million weights: what does a step cost,
and what is carried from step to step? The Transformer looks back over as many steps as
it was made for, its context. Mamba and the xLSTM put what they saw into a state, which
does not grow.

The sizes are those of the policies in ``examples/metaworld/checkpoints``; the weights
are random, since their values change no time. How well each backbone *acts* is another
question: :doc:`closed loop </evaluation>` asks it.
"""

import dataclasses
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from lram_export import ExportOptions, export_bundle, load_policy
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.checkpoints.random import random_checkpoint
from lram_export.spec.tasks import resolve_task
from lram_export.system.machine import cpu_model

CHECKPOINTS = Path(sys.argv[0]).resolve().parents[1] / "metaworld" / "checkpoints"
CONTEXTS = (16, 64, 256)
work = tempfile.TemporaryDirectory()

# %%
# The contenders
# --------------
# The Transformer acts in two ways. ``window`` is what it was trained for: all of its
# context is computed anew at every step. ``cache`` keeps the keys and values of former
# steps and computes the newest step alone; it is :doc:`another policy </checkpoint>`,
# and often a worse one.

configs = {
    name: load_checkpoint(CHECKPOINTS / name / "model.zip").config
    for name in ("xlstm", "mamba")
}
transformer = load_checkpoint(CHECKPOINTS / "decision_transformer" / "model.zip").config
for context in CONTEXTS:
    for way in ("window", "cache"):
        backbone = dataclasses.replace(transformer.backbone, context_length=context)
        longer = dataclasses.replace(transformer, backbone=backbone)
        configs[f"transformer, {way} of {context}"] = longer.in_context(way)

options = ExportOptions(targets=("native",), reference_steps=2, report=False)
bundles = {}
for name, config in configs.items():
    checkpoint, path = (
        random_checkpoint(config, work.name),
        Path(work.name) / f"{len(bundles)}.lram",
    )
    bundles[name] = export_bundle(
        checkpoint, resolve_task("metaworld/reach-v2"), path, options
    )

# %%
# Time
# ----
# All take turns, on one thread, so that a machine whose speed swings treats all alike.
# The first steps of a turn do not count; a turn of a slow one has fewer steps.

ROUNDS, SECONDS = 5, 0.06
policies = {
    name: load_policy(bundle.path, threads=1) for name, bundle in bundles.items()
}
observations = np.random.default_rng(0).standard_normal((64, 39), np.float32)
taken = {name: [] for name in policies}
for _ in range(ROUNDS):
    for name, policy in policies.items():
        for observation in observations[:2]:
            policy.act(observation)
        end = time.perf_counter() + SECONDS
        for number, observation in enumerate(observations):
            start = time.perf_counter()
            policy.act(observation)
            taken[name].append(time.perf_counter() - start)
            if number >= 2 and time.perf_counter() > end:
                break
milliseconds = {name: 1e3 * float(np.median(steps)) for name, steps in taken.items()}

# %%
# Memory
# ------
# What is carried from step to step is the state. What a process needs in all, Python
# and numpy included, is measured in one of its own.

ACT = """
import sys
import numpy as np
from lram_export import load_policy

with load_policy(sys.argv[1], threads=1) as policy:
    policy.act(np.zeros(39, np.float32))
    (line,) = (each for each in open("/proc/self/status") if each.startswith("VmHWM"))
    print(int(line.split()[1]) * 1.024)
"""


def process_megabytes(bundle: Path) -> float:
    """The most that a process has held which takes one step."""
    program = [sys.executable, "-c", ACT, str(bundle)]
    done = subprocess.run(program, check=True, stdout=subprocess.PIPE)
    return float(done.stdout) / 1e3


print(f"{cpu_model()}, 1 thread, float32\n")
print("policy                      weights         step       state   process")
for name, bundle in bundles.items():
    weights, state = bundle.manifest.parameters, bundle.manifest.spec.state_bytes
    print(
        f"{name:26} {weights / 1e6:7.2f} M {milliseconds[name]:7.3f} ms {state / 1e3:8.1f} kB"
        f" {process_megabytes(bundle.path):6.0f} MB"
    )

# %%
# Against the context
# -------------------

figure, (times, states) = plt.subplots(
    1, 2, figsize=(8.6, 3.6), layout="constrained", sharex=True
)
LINES = {
    "window": ("Transformer, window", "#d55e00", "o"),
    "cache": ("Transformer, cache", "#c07f00", "s"),
    "xlstm": ("xLSTM", "#0072b2", None),
    "mamba": ("Mamba", "#009e73", None),
}


def along(values: dict[str, float], kind: str) -> list[float]:
    """Of a kind of policy, at every context; a recurrent one is the same at all."""
    names = (f"transformer, {kind} of {context}" for context in CONTEXTS)
    return [values[kind if kind in values else name] for name in names]


kilobytes = {
    name: bundle.manifest.spec.state_bytes / 1e3 for name, bundle in bundles.items()
}
for axes, values, title in (
    (times, milliseconds, "milliseconds per step"),
    (states, kilobytes, "kB carried from step to step"),
):
    upper = max("xlstm", "mamba", key=values.__getitem__)  # their names must not meet
    shift = {"window": -3, "cache": -3, "xlstm": -9, "mamba": -9, upper: 2}
    for kind, (name, colour, marker) in LINES.items():
        line = along(values, kind)
        axes.plot(CONTEXTS, line, color=colour, marker=marker, linewidth=2)
        beside = {"textcoords": "offset points", "color": colour}
        axes.annotate(name, (CONTEXTS[-1], line[-1]), (6, shift[kind]), **beside)
    axes.set(xscale="log", yscale="log", xlabel="steps that the Transformer sees")
    axes.set_xticks(CONTEXTS, CONTEXTS)
    axes.set_xticks([], minor=True)
    axes.set_xlim(CONTEXTS[0] / 1.2, CONTEXTS[-1] * 9)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(True, color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# What follows
# ------------
# - **A Transformer with a window** pays for every step that it looks back: for a short
#   memory, or a fast processor.
# - **With a cache** a step costs about what a recurrent one costs, and what is carried
#   grows with the context.
# - **Mamba and the xLSTM** carry as much after an hour as after a second: some numbers for
#   each channel, a matrix for each head.
#
# So much holds on any machine, or this page would not have been made:

window, cache = along(milliseconds, "window"), along(milliseconds, "cache")
recurrent = max(milliseconds["xlstm"], milliseconds["mamba"])
assert all(longer > shorter for shorter, longer in itertools.pairwise(window))
assert window[-1] / window[0] > CONTEXTS[-1] / CONTEXTS[0] / 2
assert recurrent < window[1] and cache[-1] < min(5 * recurrent, window[-1] / 10)
assert kilobytes["mamba"] < kilobytes["xlstm"] < along(kilobytes, "cache")[-1]

for policy in policies.values():
    policy.close()
work.cleanup()
