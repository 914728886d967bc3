"""One policy, a row for each of several Gymnasium environments: `python examples/make_vec.py metaworld.lram [ID]`."""

import sys

import gymnasium
import numpy as np

from lram_export import load_policy
from lram_export.rollouts.vector import VectorEpisodes

ENTRY = "lram_export.rollouts.environments.metaworld:MetaWorldEnv"
gymnasium.register("Reach-v3", entry_point=ENTRY, kwargs={"task": "reach-v3"}, max_episode_steps=200)

rows = 4
policy = load_policy(sys.argv[1], threads=1, batch=rows)
envs = gymnasium.make_vec(sys.argv[2] if len(sys.argv) > 2 else "Reach-v3", num_envs=rows, vectorization_mode="sync")
if not (np.all(envs.action_space.low == -1) and np.all(envs.action_space.high == 1)):
    envs = gymnasium.wrappers.vector.RescaleAction(envs, -1.0, 1.0)  # what the policy's actions lie in
episodes = VectorEpisodes.of(envs)

observations, _ = envs.reset(seed=0)  # row i plays seed i
policy.reset()
rewards, gained, succeeded, played = None, np.zeros(rows), np.zeros(rows, bool), 0
while played < 2 * rows:
    actions = policy.act(observations, rewards)
    observations, rewards, terminations, truncations, infos = envs.step(actions)
    step = episodes.step(terminations, truncations)
    gained[step.acted] += rewards[step.acted]
    succeeded |= step.acted & (np.asarray(infos.get("success", 0)) > 0)
    for row in np.flatnonzero(step.last):
        print(f"row {row}: return {gained[row]:.0f}{', reached the goal' if succeeded[row] else ''}")
    played += int(step.last.sum())
    gained[step.last], succeeded[step.last] = 0.0, False
    if step.to_reset.any():  # with autoreset_mode=Disabled
        observations, _ = envs.reset(options={"reset_mask": step.to_reset})
    policy.reset(rows=step.first)
envs.close()
policy.close()
print(f"{played} episodes in {rows} rows")
