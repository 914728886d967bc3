"""Runs recorded episodes through step graphs, many at a time, each with its own recurrent state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lram_export.progress import Advance
from lram_export.reference import StepSequence
from lram_export.specification import state_specs
from lram_export.step import StepGraph

PARALLEL_EPISODES = 32


@dataclass(frozen=True)
class EpisodeBatch:
    """Some episodes side by side, (steps, episodes, ...), the shorter ones padded; ``active`` marks real steps."""

    steps: StepSequence
    active: NDArray[np.bool_]


@dataclass(frozen=True)
class RolloutOutputs:
    """Actions and action logits of all steps of all episodes, (steps, ...), in the order of the batches."""

    action: NDArray[np.generic]
    action_logits: NDArray[np.float32]


def split_episodes(recordings: Iterable[StepSequence]) -> list[StepSequence]:
    """Every episode by itself, (steps, ...) without a batch dimension, in order."""
    episodes = []
    for steps in recordings:
        for row in range(steps.is_first.shape[1]):
            starts = np.flatnonzero(steps.is_first[:, row])
            for begin, end in zip(starts, [*starts[1:], len(steps)], strict=True):
                columns = {f.name: getattr(steps, f.name)[begin:end, row] for f in fields(StepSequence)}
                episodes.append(StepSequence(**columns))
    return episodes


def batch_episodes(episodes: Sequence[StepSequence], parallel: int = PARALLEL_EPISODES) -> list[EpisodeBatch]:
    """Episodes of similar length side by side; padding repeats an episode's last step."""
    ordered = sorted(episodes, key=len)
    batches = []
    for first in range(0, len(ordered), parallel):
        group = ordered[first : first + parallel]
        length = max(len(e) for e in group)
        index = [np.minimum(np.arange(length), len(e) - 1) for e in group]
        columns = {
            f.name: np.stack([getattr(e, f.name)[i] for e, i in zip(group, index, strict=True)], axis=1)
            for f in fields(StepSequence)
        }
        active = np.stack([np.arange(length) < len(e) for e in group], axis=1)
        batches.append(EpisodeBatch(StepSequence(**columns), active))
    return batches


@torch.no_grad()
def roll_out(
    graph: StepGraph, batch: EpisodeBatch, advance: Advance = lambda amount: None
) -> Iterator[tuple[NDArray[np.bool_], Tensor, Tensor]]:
    """Step a graph through a batch; yields (active rows, actions, action logits) after every step."""
    rows = batch.active.shape[1]
    state = [torch.full(t.shape, t.initial or 0.0) for t in state_specs(graph.config, rows)]
    for arguments, active in zip(batch.steps, batch.active, strict=True):
        inputs = [torch.from_numpy(np.ascontiguousarray(a)) for a in arguments]
        action, logits, *state = graph(*inputs, *state)
        advance(int(active.sum()))
        yield active, action, logits


def outputs(graph: StepGraph, batches: Iterable[EpisodeBatch]) -> RolloutOutputs:
    """What a graph does in all real steps of some batches."""
    actions, logits = [], []
    for batch in batches:
        for active, action, action_logits in roll_out(graph, batch):
            rows = torch.from_numpy(active)
            actions.append(action[rows].numpy())
            logits.append(action_logits[rows].numpy())
    return RolloutOutputs(np.concatenate(actions), np.concatenate(logits))
