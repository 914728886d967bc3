"""Plays a case with LEAPP's own InferenceManager: ``python leapp_manager.py CASE NAME.yaml``."""

import json
import sys

import leapp
import numpy as np
import torch
from leapp.inference_manager import InferenceManager


def main(case, description):
    recorded = np.load(case)
    manager, different, largest = InferenceManager(description), 0, 0.0
    (observation,), (action,) = manager.inputs, manager.outputs
    for episode in range(2):
        if episode:
            manager.reset()
        for observed, expected in zip(recorded["observation"], recorded["action"], strict=True):
            # a copy: reset() zeroes what it was given
            found = manager.run_policy({observation: torch.from_numpy(observed.copy())})[action]
            different += int((found.numpy() != expected).sum())
            largest = float(np.maximum(largest, np.abs(found.numpy() - expected).max()))
    said = {"actions": 2 * recorded["action"].size, "different": different, "largest": largest}
    print(json.dumps({"version": leapp.__version__, **said}))


if __name__ == "__main__":
    main(*sys.argv[1:])
