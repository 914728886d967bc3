"""Runs recorded episodes through step graphs and runtimes, several at a time, each with its own recurrent state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lram_export.backbones.state import initial_state
from lram_export.episodes.batches import EpisodeBatch, RolloutOutputs, all_of, episode_by_episode
from lram_export.model.step_graph import StepGraph
from lram_export.progress import Advance


@torch.no_grad()
def roll_out(
    graph: StepGraph, batch: EpisodeBatch, advance: Advance = lambda amount: None
) -> Iterator[tuple[NDArray[np.bool_], Tensor, Tensor]]:
    """Step a graph through a batch; yields (active rows, actions, action logits) after every step."""
    rows = batch.active.shape[1]
    specs = graph.config.backbone.states(rows, len(graph.config.tokens))
    state = list(initial_state(specs, graph.initial_tensors()).values())
    for arguments, active in zip(batch.steps, batch.active, strict=True):
        inputs = [torch.tensor(a) for a in arguments]  # copies: aligned, so that bits do not depend on where they lie
        action, logits, *state = graph(*inputs, *state)
        advance(int(active.sum()))
        yield active, action, logits


def outputs(graph: StepGraph, batches: Iterable[EpisodeBatch]) -> RolloutOutputs:
    """What a graph does in all real steps of some batches."""
    return all_of(
        episode_by_episode(batch, ((action.numpy(), logits.numpy()) for _, action, logits in roll_out(graph, batch)))
        for batch in batches
    )
