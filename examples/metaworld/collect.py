"""Collect training episodes: Meta-World's scripted experts, played with noise, labelled without.

The action that is played is the expert's plus Gaussian noise, so that states off the expert's path are
seen; the label is what the expert would have done there. Failed episodes are dropped.

    python examples/metaworld/collect.py build/metaworld/episodes
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from lram_export.cli.console import message
from lram_export.rollouts.environments.metaworld import EPISODE_STEPS, MetaWorldEnv
from lram_export.system.files import atomic_file
from lram_export.system.processes import end_with_parent, interrupts_held

TASKS = (
    "reach-v3",
    "push-v3",
    "hammer-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "window-open-v3",
    "window-close-v3",
    "faucet-open-v3",
)
"""The ten tasks of MT10, with two replaced: pick-place-v3 starts from observations that are drawn like those
of reach-v3, so that no policy can tell them apart before it acts, and peg-insert-side-v3's expert often
fails. hammer-v3 (grasp a hammer, drive in a nail) and faucet-open-v3 stand in."""
NOISES = (0.0, 0.1, 0.3)
"""Standard deviations of the noise on the played action, in units of the action (1 = 1 cm of arm motion)."""
FIRST_SEED = 1_000_000
"""Layouts of training episodes; evaluation counts from 0 and never comes here."""


@dataclass(frozen=True)
class Episodes:
    """Successful episodes of one task.

    ``observations`` (N, 200, 39) float32; ``actions`` (N, 200, 4) float32, the expert's, within [-1, 1];
    ``rewards`` (N, 200) float32; ``success`` (N,) int64, the first step with success.
    """

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    success: NDArray[np.int64]

    def save(self, file: Path) -> None:
        """Write an `.npz`, whole or not at all."""
        with atomic_file(file) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **vars(self))

    @staticmethod
    def load(file: Path) -> Episodes:
        """Read what :meth:`save` wrote."""
        with np.load(file, allow_pickle=False) as arrays:
            return Episodes(**{name: arrays[name] for name in arrays.files})


def play(task: str, seed: int, noise: float) -> tuple[NDArray[np.float32], NDArray[np.float32], list[float], int]:
    """Play one episode; the last value is the first step with success, -1 where there is none."""
    from metaworld.policies import ENV_POLICY_MAP

    environment, expert = MetaWorldEnv(task), ENV_POLICY_MAP[task]()
    rng = np.random.default_rng(seed)
    observation, _ = environment.reset(seed=seed)
    observations, actions, rewards, success = [], [], [], -1
    for step in range(EPISODE_STEPS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experts ask for more than the arm can do; it is clipped here
            label = np.clip(expert.get_action(observation), -1.0, 1.0).astype(np.float32)
        played = np.clip(label + rng.normal(0.0, noise, label.shape), -1.0, 1.0).astype(np.float32)
        observations.append(observation.astype(np.float32))
        actions.append(label)
        observation, reward, _, _, info = environment.step(played)
        rewards.append(reward)
        if info["success"] and success < 0:
            success = step
    environment.close()
    return np.stack(observations), np.stack(actions), rewards, success


def collect_task(task: str, episodes: int) -> Episodes:
    """Play ``episodes`` episodes of one task, a third with each noise, and keep the successful ones."""
    played = [play(task, FIRST_SEED + i, NOISES[i % len(NOISES)]) for i in range(episodes)]
    kept = [episode for episode in played if episode[3] >= 0]
    return Episodes(
        np.stack([e[0] for e in kept]),
        np.stack([e[1] for e in kept]),
        np.array([e[2] for e in kept], np.float32),
        np.array([e[3] for e in kept], np.int64),
    )


def collect(folder: Path, tasks: tuple[str, ...], episodes: int, workers: int) -> Iterator[tuple[str, Episodes]]:
    """Collect every task that ``folder`` does not hold yet, one file each, in ``workers`` processes."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [task for task in tasks if not (folder / f"{task}.npz").is_file()]
    with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        with interrupts_held():
            collected = pool.map(collect_task, missing, [episodes] * len(missing))
        for task, found in zip(missing, collected, strict=True):
            found.save(folder / f"{task}.npz")
            yield task, found


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--episodes", default=120, show_default=True, help="Episodes played per task.")
@click.option("--workers", default=2, show_default=True, help="Processes.")
def main(folder: Path, episodes: int, workers: int) -> None:
    """Collect episodes of the ten tasks into FOLDER; tasks that are there already are not played again."""
    for task, found in collect(folder, TASKS, episodes, workers):
        returns = found.rewards.sum(1)
        message(
            f"{task}: {len(returns)} of {episodes} episodes succeeded, mean return {returns.mean():.0f}", quiet=False
        )


if __name__ == "__main__":
    main()
