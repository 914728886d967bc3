"""Train a small action model on collected episodes, with the original recipe, on two CPU cores.

Sequences of 50 environment steps, three tokens each (state, return-to-go, reward), cross-entropy on the
action bins at the return-to-go tokens. Observations are normalized while training; mean and deviation are
folded into ``embed_state`` when the checkpoint is written, so that it takes raw observations.

    python examples/metaworld/train.py build/metaworld/episodes -o build/metaworld/xlstm --backbone xlstm
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from collect import Episodes
from numpy.typing import NDArray
from original import Training, save_original
from parallel import Gradients
from policies import CONTEXT, POLICIES, Trained
from torch import Tensor
from torch.nn import functional as F

from lram_export.cli.console import ConsoleProgress, message
from lram_export.model.config import ModelConfig
from lram_export.model.reference import ReferenceModel
from lram_export.spec.tasks import task_table
from lram_export.spec.tokens import LRAM
from lram_export.system.files import atomic_file

DEVIATION_FLOOR = 0.02
"""Smallest standard deviation an observation is divided by: entries that barely move must not become noise."""
REWARD_SCALE = float(task_table()["metaworld"]["reward_scale"])
SAVE_EVERY = 180.0
"""Seconds between training states on disk: what an interruption costs at most."""
LAST_LOSSES = 50
"""Batches whose mean loss is told."""
TOKENS = len(LRAM)
BEGINNINGS = 0.3
"""Share of sequences that show the beginning of an episode, where it is decided; twice as many where padding leaves
less than half of it to be learned from."""
NOT_LEARNED = -100
"""Label of a step that is padding."""
PARTS = 2
"""Parts of a batch whose gradients are computed apart, by two processes or one after the other."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a run; ``batch_size`` is a multiple of the number of parts."""

    batches: int = 2000
    batch_size: int = 32
    context: int = CONTEXT
    learning_rate: float = 1.5e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0

    def rate(self, batch: int) -> float:
        """Learning rate of a batch: linear warm-up, then a cosine down to a hundredth."""
        if batch < self.warmup:
            return self.learning_rate * (batch + 1) / self.warmup
        done = (batch - self.warmup) / max(self.batches - self.warmup, 1)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0))))


@dataclass(frozen=True)
class Windows:
    """A batch of sequences of T environment steps: what the model sees, and the expert's action as bins.

    ``observations`` (B, T, 39), ``return_to_go`` (B, T) and ``rewards`` (B, T) of the previous step, both
    scaled, ``labels`` (B, T, 4) int64 tokens. Padding: zeros, and labels that are not learned.
    """

    observations: Tensor
    return_to_go: Tensor
    rewards: Tensor
    labels: Tensor


class Sampler:
    """Draws windows from episodes, every task as often as any other.

    A policy meets two kinds of return-to-go and of reward token, with and without a reward signal, and aims
    at the return of the task table, which need not be what this expert reaches. All of these are trained:
    for each window by chance, (1) the initial return-to-go is the episode's own return or the table's,
    (2) rewards lower it, or it stays, (3) the reward tokens carry the rewards, or are 0.
    """

    def __init__(self, episodes: dict[str, Episodes], recipe: Recipe, config: ModelConfig, padded: bool) -> None:
        targets = task_table()["metaworld"]["target_returns"]
        self.episodes = list(episodes.values())
        self.targets = [targets[name.replace("-v3", "-v2")] / REWARD_SCALE for name in episodes]
        self.recipe, self.config, self.padded = recipe, config, padded

    def statistics(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and (floored) standard deviation of the observations, (39,) each, all tasks alike."""
        per_task = [e.observations.astype(np.float64).reshape(-1, e.observations.shape[-1]) for e in self.episodes]
        mean = np.mean([o.mean(0) for o in per_task], axis=0)
        variance = np.mean([((o - mean) ** 2).mean(0) for o in per_task], axis=0)
        return mean, np.maximum(np.sqrt(variance), DEVIATION_FLOOR)

    def draw(self, rng: np.random.Generator) -> Windows:
        """One batch."""
        rows = [self._window(rng) for _ in range(self.recipe.batch_size)]
        return Windows(*(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)))

    def _window(self, rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
        task = int(rng.integers(len(self.episodes)))
        episodes, context = self.episodes[task], self.recipe.context
        row = int(rng.integers(len(episodes.success)))
        rewards = episodes.rewards[row] / np.float32(REWARD_SCALE)
        # the beginning is where an episode is decided; long after the success nothing is to be learned
        last = min(int(episodes.success[row]) + 10, rewards.size) - context // 2
        if rng.random() < BEGINNINGS * (1 + self.padded):
            start = int(rng.integers(1 - context, 1)) if self.padded else 0
        else:
            start = int(rng.integers(0, max(min(last, rewards.size - context), 0) + 1))
        own, lowers, seen = rng.random(3) < 0.5
        before = np.concatenate([np.zeros(1, np.float32), rewards[:-1]])
        initial = np.float32(rewards.sum() if own else self.targets[task])
        return_to_go = initial - (np.cumsum(before, dtype=np.float32) if lowers else np.float32(0.0))
        return (
            padded_part(episodes.observations[row], start, context),
            padded_part(np.broadcast_to(return_to_go, rewards.shape), start, context),
            padded_part(before if seen else np.zeros_like(before), start, context),
            padded_part(label_tokens(episodes.actions[row], self.config), start, context, NOT_LEARNED),
        )


def padded_part(values: NDArray[Any], start: int, length: int, padding: float = 0.0) -> NDArray[Any]:
    """``values[start : start + length]``, with ``padding`` for those before the first."""
    before = max(-start, 0)
    part = values[start + before : start + length]
    return np.concatenate([np.full((before, *values.shape[1:]), padding, values.dtype), part])


def label_tokens(actions: NDArray[np.float32], config: ModelConfig) -> NDArray[np.int64]:
    """The token whose decoded value, the left edge of its bin, is nearest to each action in [-1, 1]."""
    half = config.head.action_channels / 2
    bins = np.rint((actions + 1.0) * half).clip(0, config.head.action_channels - 1)
    return bins.astype(np.int64) + config.head.discrete_actions


def loss_of(model: ReferenceModel, windows: Windows) -> Tensor:
    """Mean cross-entropy of the expert's action tokens, from the whole sequence in parallel."""
    batch, steps, _ = windows.observations.shape
    inputs = {
        "observation": windows.observations.flatten(0, 1),
        "return_to_go": windows.return_to_go.flatten(),
        "reward": windows.rewards.flatten(),
    }
    tokens = model.embed(inputs)
    tokens = tokens.reshape(batch, steps * TOKENS, -1)[:, 1:]  # a sequence begins without a reward
    hidden = model.backbone(tokens)[:, TOKENS - 2 :: TOKENS]
    logits = model.action_net(hidden).unflatten(-1, (model.config.head.act_dim, model.config.head.num_actions))
    return F.cross_entropy(logits.flatten(0, 2), windows.labels.flatten(), ignore_index=NOT_LEARNED)


def fold_normalization(
    weights: dict[str, Tensor], mean: NDArray[np.float64], deviation: NDArray[np.float64]
) -> dict[str, Tensor]:
    """Weights that take raw observations x: W (x - mean) / deviation + b = (W / deviation) (x - mean) + b."""
    W, b = weights["embed_state.weight"].double(), weights["embed_state.bias"].double()
    scaled = W / torch.from_numpy(deviation)
    folded = {"embed_state.weight": scaled.float(), "embed_state.bias": (b - scaled @ torch.from_numpy(mean)).float()}
    return {**weights, **folded}


@dataclass(frozen=True)
class PartLoss:
    """The loss of one part of a batch of a run, the same in every process."""

    sampler: Sampler
    mean: Tensor
    deviation: Tensor

    def __call__(self, model: ReferenceModel, batch: int, part: int) -> Tensor:
        """Mean loss of a part of a batch."""
        recipe = self.sampler.recipe
        # a generator per batch: a resumed run draws what an uninterrupted one would have drawn
        windows = self.sampler.draw(np.random.default_rng([recipe.seed, batch]))
        size = recipe.batch_size // PARTS
        observations, *others = (getattr(windows, f.name)[part * size : (part + 1) * size] for f in fields(windows))
        return loss_of(model, Windows((observations - self.mean) / self.deviation, *others))


class Run:
    """A training run that can be interrupted: everything it needs to go on is in one file."""

    def __init__(
        self,
        episodes: dict[str, Episodes],
        folder: Path,
        recipe: Recipe,
        trained: Trained,
        processes: int = 1,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.folder, self.processes = recipe, folder, processes
        config = trained.config
        self.sampler = Sampler(episodes, recipe, config, trained.padded)
        self.mean, self.deviation = self.sampler.statistics()
        self.build = partial(ReferenceModel, config, context_length=recipe.context * TOKENS)
        self.model = self.build()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay
        )
        self.batch, self.seconds = 0, 0.0
        self.losses: list[float] = []

    @property
    def file(self) -> Path:
        """The training state: model, optimizer, position."""
        return self.folder / "training.pt"

    def resume(self) -> None:
        """Go on where the folder's training state ends; does nothing if there is none."""
        if not self.file.is_file():
            return
        saved = torch.load(self.file, weights_only=True)
        for what, own in (("recipe", vars(self.recipe)), ("policy", self.model.config.to_json())):
            if saved[what] != json.loads(json.dumps(own)):
                raise click.UsageError(
                    f"{self.file}: was made with another {what} ({saved[what]}); choose another folder"
                )
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.batch, self.seconds, self.losses = saved["batch"], saved["seconds"], saved["losses"]

    def save(self) -> None:
        """Write training state, what there is to say of it, and checkpoint, each whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "recipe": vars(self.recipe),
            "policy": json.loads(json.dumps(self.model.config.to_json())),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batch": self.batch,
            "seconds": self.seconds,
            "processes": self.processes,
            "losses": self.losses,
        }
        with atomic_file(self.file, force=True) as temporary:
            torch.save(state, temporary)
        facts = {
            "recipe": vars(self.recipe),
            "episodes": sum(len(e.success) for e in self.sampler.episodes),
            "batches": self.batch,
            "seconds": round(self.seconds),
            "processes": self.processes,
            "loss": float(np.mean(self.losses[-LAST_LOSSES:])) if self.losses else None,
        }
        with atomic_file(self.folder / "training.json", force=True) as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        training = Training(self.batch, self.recipe.context, self.recipe.batch_size, self.recipe.seed)
        weights = fold_normalization(self.model.state_dict(), self.mean, self.deviation)
        save_original(weights, self.model.config, training, self.folder)

    def train(self) -> Iterator[int]:
        """Train to the last batch, yielding each batch's number; saves every few minutes and however it ends."""
        normalization = (torch.from_numpy(a).float() for a in (self.mean, self.deviation))
        began, saved = time.monotonic() - self.seconds, time.monotonic()
        part_loss = PartLoss(self.sampler, *normalization)
        with Gradients(self.model, self.build, part_loss, PARTS, self.processes) as gradients:
            try:
                while self.batch < self.recipe.batches:
                    self.losses.append(self._update(gradients))
                    self.batch += 1
                    self.seconds = time.monotonic() - began
                    yield self.batch
                    if time.monotonic() - saved > SAVE_EVERY:
                        self.save()
                        saved = time.monotonic()
            finally:
                self.save()

    def _update(self, gradients: Gradients) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.batch)
        loss = gradients.compute(self.batch)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        return loss


def load_episodes(folder: Path) -> dict[str, Episodes]:
    """All tasks that :mod:`collect` left in a folder, by name."""
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise click.UsageError(f"{folder}: holds no episodes; run collect.py first")
    return {file.stem: Episodes.load(file) for file in files}


@click.command()
@click.argument("episodes", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--backbone", type=click.Choice(list(POLICIES)), default="xlstm", show_default=True)
@click.option("--batches", default=Recipe.batches, show_default=True)
@click.option("--batch-size", default=Recipe.batch_size, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=Recipe.seed, show_default=True)
@click.option("--processes", default=2, show_default=True, help="Processes that share a batch, one thread each.")
def main(episodes: Path, output: Path, backbone: str, batches: int, batch_size: int, seed: int, processes: int) -> None:
    """Train on the EPISODES that collect.py left, or go on with an interrupted run."""
    if batch_size % PARTS:
        raise click.UsageError(f"--batch-size: expected a multiple of {PARTS}, got {batch_size}")
    torch.set_num_threads(1)
    recipe = Recipe(batches, batch_size, seed=seed)
    run = Run(load_episodes(episodes), output, recipe, POLICIES[backbone], processes)
    run.resume()
    with ConsoleProgress(quiet=False).stage("training", batches) as advance:
        advance(run.batch)
        for batch in run.train():
            advance(1)
            if batch % LAST_LOSSES == 0:
                loss = np.mean(run.losses[-LAST_LOSSES:])
                message(f"batch {batch}: loss {loss:.3f}, {run.seconds / 60:.1f} minutes", quiet=False)
    message(f"{output / 'model.zip'}: {run.batch} batches in {run.seconds / 60:.1f} minutes", quiet=False)


if __name__ == "__main__":
    main()
