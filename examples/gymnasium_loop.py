"""An exported policy in an ordinary Gymnasium loop: `python examples/gymnasium_loop.py reach.lram`."""

import sys

import gymnasium
import metaworld  # registers its environments  # noqa: F401

from lram_export import load_policy

environment = gymnasium.make("Meta-World/goal_observable", env_name="reach-v3", seed=0)
policy = load_policy(sys.argv[1], threads=1)
policy.reset()
(observation, info), reward, success = environment.reset(), None, False
for _ in range(200):
    action = policy.act(observation, reward)
    observation, reward, terminated, truncated, info = environment.step(action)
    success = success or bool(info["success"])
print("reached the goal" if success else "did not reach the goal")
