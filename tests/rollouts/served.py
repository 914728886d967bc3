"""Environments for a process that serves them; numpy only, with the methods of Gymnasium's predecessors."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


class Box:
    def __init__(self, low, high, shape):
        self.shape, self.dtype = shape, np.dtype("float32")
        self.low, self.high = np.full(shape, low, "float32"), np.full(shape, high, "float32")


class Line:
    """The line of ``line.py``, as before Gym 0.26: reset without a seed, step with four values."""

    observation_space = Box(-10, 10, (3,))
    action_space = Box(-1, 1, (2,))

    def __init__(self, task):
        self.task = task
        print("noise on standard output")
        if task == "unmade":
            raise RuntimeError("no display\nhere")
        if task == "dict":
            self.observation_space = {"a": 1}

    def seed(self, seed):
        self.seeded = seed

    def reset(self):
        self.position, self.count = np.random.default_rng(self.seeded).normal(size=3).astype("float32"), 0
        return self.position.copy()

    def step(self, action):
        self.count += 1
        if self.count == 5:
            self.misbehave()
        self.position[0] += 0.1 * action[0]
        done = self.count == 12
        info = {"is_success": bool(self.position[0] > 0), "TimeLimit.truncated": done}
        return self.position.copy(), float(-abs(self.position[0])), done, info

    def misbehave(self):
        if self.task == "raises":
            raise ValueError("the simulator\nhas exploded")
        if self.task == "exits":
            sys.stderr.write("out of licences\n")
            sys.stderr.flush()
            os._exit(3)
        if self.task.startswith("hangs"):
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            Path(self.task.partition("-")[2]).write_text(f"{os.getpid()} {child.pid}")
            time.sleep(600)
        if self.task == "shape":
            self.position = np.zeros(4, "float32")

    def close(self):
        if self.task == "stays":
            raise RuntimeError("does not end")
