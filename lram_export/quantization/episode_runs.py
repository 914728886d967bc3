"""Runs recorded episodes through step graphs and runtimes, several at a time, each with its own recurrent state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from lram_export.backbones.state import initial_state
from lram_export.episodes.batches import EpisodeBatch, Outputs, all_of, episode_by_episode
from lram_export.model.graph import Graph


@torch.no_grad()
def roll_out(graph: Graph, batch: EpisodeBatch) -> Iterator[list[NDArray[Any]]]:
    """Step a graph through a batch; yields the outputs of every step."""
    state = start_of(graph, batch)
    for arguments in batch.steps:
        inputs = [torch.tensor(a) for a in arguments]  # copies: aligned, so that bits do not depend on where they lie
        found = graph(*inputs, *state)
        count = len(graph.spec.outputs)
        yield [values.numpy() for values in found[:count]]
        state = found[count:]


def start_of(graph: Graph, batch: EpisodeBatch) -> list[Tensor]:
    """The initial state of all rows of a batch, in the order of the specification."""
    rows = batch.active.shape[1]
    specs = [dataclasses.replace(state, shape=(rows, *state.shape[1:])) for state in graph.spec.states]
    return list(initial_state(specs, graph.initial_tensors()).values())


def outputs(graph: Graph, batches: Iterable[EpisodeBatch]) -> Outputs:
    """What a graph does in all real steps of some batches."""
    return all_of(graph.spec, (episode_by_episode(batch, roll_out(graph, batch)) for batch in batches))
