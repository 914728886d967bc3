"""
From model.zip to a Raspberry Pi
================================

stable-baselines3 leaves a ``model.zip``. A Raspberry Pi that balances a pole has no
use for torch: it gets a bundle, which is a compiled policy with the recorded steps
that prove it. It takes three commands here and two there.

Needs a clone with ``make install``; for its last part also a cross-compiler, an emulator
and the libraries of ``make wheels``, and it says so where they are missing.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gymnasium
import matplotlib.pyplot as plt
import numpy as np
from stable_baselines3 import PPO

from lram_export import load_policy

repository = Path(sys.argv[0]).resolve().parents[2]
work = Path(tempfile.mkdtemp())
programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def sh(command: str) -> str:
    """Run a line in the working folder, and show it with what it says."""
    told = {**os.environ, "PATH": programs, "COLUMNS": "88", "OMP_NUM_THREADS": "1"}
    shown = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, shell=True, cwd=work, env=told, check=False, **shown)
    print(f"$ {command}\n{done.stdout}")
    assert done.returncode == 0, done.stdout
    return done.stdout


# %%
# Train
# -----
# A cart with a pole on it: four numbers in (where the cart is, how the pole stands,
# how fast both change), one force out, 25 times a second. A few seconds of PPO are
# enough to see a policy act; how well it acts is not what this page is about.

model = PPO(
    "MlpPolicy",
    "InvertedPendulum-v5",
    n_steps=512,
    learning_rate=1e-3,
    seed=0,
    device="cpu",
)
model.learn(10_240)
model.save(work / "model.zip")

# %%
# Export
# ------
# The target ``native`` is our own engine in C++. Its file is the same for every
# processor, and the engine takes the kernels that the processor has. It is verified
# before the bundle gets its name.

sh("lram-export export model.zip -o pole.lram --target native")

# %%
# Verify
# ------
# Without a checkpoint, ``verify`` replays the steps that were recorded at the export.
# That is what the Pi will do, and it needs no torch. With a checkpoint, fresh random
# steps go through both.

assert "passed" in sh("lram-export verify pole.lram")

# %%
# What counts is the closed loop. The exported policy balances the pole, and at every step
# the trained one is asked what it would do; then the trained one balances it, by itself.


def balance(act, seed: int) -> np.ndarray:
    """The pole's angle in radians at every step of an episode of 10 seconds at most."""
    with gymnasium.make("InvertedPendulum-v5") as env:
        observation, _ = env.reset(seed=seed)
        angles = []
        for _ in range(250):
            observation, _, fallen, _, _ = env.step(act(observation))
            angles.append(observation[1])
            if fallen:
                break
        return np.array(angles)


def trained_act(observation: np.ndarray) -> np.ndarray:
    """What stable-baselines3 does."""
    return model.predict(observation, deterministic=True)[0]


def exported_act(observation: np.ndarray) -> np.ndarray:
    """What the bundle does; keeps how far that is from the above."""
    action = policy.act(observation.astype(np.float32))
    errors.append(float(np.abs(action - trained_act(observation)).max()))
    return action


errors: list[float] = []
with load_policy(work / "pole.lram", threads=1) as policy:
    exported = [balance(exported_act, seed) for seed in range(3)]
trained = [balance(trained_act, seed) for seed in range(3)]
print(f"largest difference of a force: {max(errors):.1e} of 3, {len(errors)} steps")
assert max(errors) < 1e-5
for what, episodes in (("exported", exported), ("trained", trained)):
    seconds = ", ".join(f"{len(angles) / 25:.1f}" for angles in episodes)
    print(f"seconds of balance, {what}: {seconds}")

# %%
# The exported policy lies on the trained one:

figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
for theirs, ours in zip(trained, exported, strict=True):
    (wide,) = axes.plot(np.arange(len(theirs)) / 25, np.degrees(theirs), "0.75", lw=5)
    (narrow,) = axes.plot(
        np.arange(len(ours)) / 25, np.degrees(ours), "#0072b2", lw=1.2
    )
axes.legend([wide, narrow], ["stable-baselines3", "native"], frameon=False)
axes.set(xlabel="seconds", ylabel="angle of the pole, degrees", title="Three episodes")
plt.show()

# %%
# A step here, the median of 2,000. On the Pi ``lram-export bench pole.lram --rate 25``
# measures it, with the deadlines that are missed.


def microseconds(act) -> float:
    """The median of many steps."""
    observation, taken = np.zeros(4, np.float32), []
    for _ in range(2_000):
        start = time.perf_counter()
        act(observation)
        taken.append(time.perf_counter() - start)
    return 1e6 * float(np.median(taken))


with load_policy(work / "pole.lram", threads=1) as policy:
    ours = microseconds(policy.act)
theirs = microseconds(trained_act)
print(f"native {ours:.0f} us, model.predict {theirs:.0f} us")
assert ours < theirs

# %%
# Deploy
# ------
# A kit is one file: the bundle, this package as a wheel, the script that installs
# them, a control loop and its service. The wheel has the engine for one kind of
# processor; the one for a Pi 5 with Debian 12 is made by ``make wheels``, once:
#
# .. code-block:: console
#
#    make wheels
#    lram-export deploy pole.lram -o pole-kit.tar.gz --target native --platform aarch64 --python 3.11 --dist dist

# %%
# Where there are no such wheels, this page packs a kit for a machine like the one it
# is made on. It differs in that alone.

(work / "dist").symlink_to(repository / "dist")
for_the_pi = bool(list(work.glob("dist/*aarch64*.whl")))
options = " --platform aarch64 --python 3.11 --dist dist" if for_the_pi else ""
sh(f"lram-export deploy pole.lram -o pole-kit.tar.gz --target native{options}")
print(
    "for a Raspberry Pi"
    if for_the_pi
    else "no wheels for ARM in dist: this kit is for a machine like this one"
)

# %%
# Its control loop is Python and runs here, too: recorded observations go in, actions
# go nowhere, missed deadlines are counted.

sh("tar xzf pole-kit.tar.gz")
sh("cd pole && python control_loop.py pole.lram --target native --rate 25 --steps 50")

# %%
# On the Raspberry Pi
# -------------------
# Copy the kit there, and
#
# .. code-block:: console
#
#    robot$ tar xzf pole-kit.tar.gz && sudo sh pole/install.sh
#    robot$ cd /opt/lram/pole && sudo nano robot.py
#    robot$ venv/bin/python control_loop.py pole.lram --target native
#    robot$ venv/bin/python control_loop.py pole.lram --target native --robot robot --steps 250
#
# The script verifies the bundle there, on the Pi's own kernels. ``robot.py`` reads the
# encoders and commands the motor. The third line rehearses; the fourth moves for ten
# seconds. Then :doc:`the service and the night </robot>`.
#
# On an emulated Pi
# -----------------
# No Pi is needed to see the ARM kernels compute the same. A kit in C holds the
# engine's library and a program that does what ``verify`` does; a cross-compiler makes
# it, QEMU plays a Cortex-A76. That takes the libraries of ``make wheels``,
# ``g++-aarch64-linux-gnu`` and ``qemu-user-static``.

tools = ("aarch64-linux-gnu-g++", "qemu-aarch64-static")
missing = [name for name in tools if shutil.which(name) is None] + (
    [] if for_the_pi else ["make wheels"]
)
if missing:
    print("not shown here, for want of:", ", ".join(missing))
else:
    sh(
        "lram-export deploy pole.lram -o c.tar.gz --language c --platform aarch64 --dist dist"
    )
    sh("mkdir c && tar xzf c.tar.gz -C c")
    source = "share/lram/examples/check/check.cpp"
    library = "-Llib -llram -Wl,-rpath,'$ORIGIN/lib'"
    compiled = f"{tools[0]} -std=c++17 -O2 -Iinclude {source} {library} -o check"
    sh(f"cd c/pole && {compiled}")
    emulate = "QEMU_CPU=cortex-a76 qemu-aarch64-static -L /usr/aarch64-linux-gnu"
    check = "./check pole.lram/native/model.lrn reference.lrs"
    assert "passed" in sh(f"cd c/pole && {emulate} {check}")

shutil.rmtree(work)
