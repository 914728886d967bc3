"""Does a server that is up act as the policy? Three robots, interleaved, two episodes each.

python examples/servers/check.py triton|ovms ADDRESS MODEL BUNDLE     # triton localhost:8000 reach reach.lram
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from lram_export import load_policy
from lram_export.policy import observations_of

ROBOTS, EPISODES = 3, 2


def main(server: str, address: str, model: str, bundle: str, target: str | None = None) -> int:
    """How many actions differ; the target is the one that the server's was made of, or runs."""
    if server == "triton":
        from servers.triton_client import RemotePolicy
    else:
        from servers.ovms_client import RemotePolicy
    policies = [load_policy(bundle, target, batch=1) for _ in range(ROBOTS)]
    robots = [RemotePolicy(address, model, sequence + 1) for sequence in range(ROBOTS)]
    with np.load(Path(bundle) / "reference.npz") as recorded:
        observations = {t.name: recorded[t.name][:, :1] for t in observations_of(policies[0].spec)}
    steps = len(next(iter(observations.values())))
    count = different = 0
    seconds = []
    for tick in range(EPISODES * steps + ROBOTS):
        for number, (policy, robot) in enumerate(zip(policies, robots, strict=True)):
            episode, step = divmod(tick - number, steps)  # every robot begins a step after the one before
            if not 0 <= episode < EPISODES:
                continue
            place = step if (episode + number) % 2 == 0 else steps - 1 - step
            given = {name: values[place] for name, values in observations.items()}
            began = time.perf_counter()
            found = robot.act(given, first=step == 0, last=step == steps - 1)
            seconds.append(time.perf_counter() - began)
            expected = policy.step(given, first=step == 0)
            for name, values in found.items():
                count += values.size
                different += int((values.reshape(expected[name].shape) != expected[name]).sum())
    print(
        json.dumps({"actions": count, "different": different, "median_ms": round(1000 * float(np.median(seconds)), 2)})
    )
    return different


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) > 0)
