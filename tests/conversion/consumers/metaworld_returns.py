"""Plays Meta-World as lerobot-eval does, by the step API alone, without rewards.

``python metaworld_returns.py BUNDLE TASK EPISODES ROWS``
"""

import json
import sys

import numpy as np

from lram_export import load_policy
from lram_export.rollouts.environments import open_environment

STEPS = 200


def main(bundle, task, episodes, rows):
    returns, successes = [], []
    with load_policy(bundle, batch=rows) as policy:
        for start in range(0, episodes, rows):
            environments = [open_environment(f"metaworld/{task}") for _ in range(rows)]
            observed = [each.reset(seed=start + row)[0] for row, each in enumerate(environments)]
            total, done = np.zeros(rows), np.zeros(rows, bool)
            policy.reset()
            for _ in range(STEPS):
                actions = policy.act(np.float32(observed).reshape(rows, -1)).reshape(rows, -1)
                stepped = [each.step(action) for each, action in zip(environments, actions, strict=True)]
                observed = [step[0] for step in stepped]
                total += [step[1] for step in stepped]
                done |= [bool(step[4]["success"]) for step in stepped]
            returns += total.tolist()
            successes += done.tolist()
    print(json.dumps({"returns": returns, "successes": successes}))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
