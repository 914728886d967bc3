"""Runs recorded episodes through a step graph stage by stage: the embedding, every stage of the backbone, the head.

The recurrent state of a stage depends on nothing but its own inputs, so a stage can see all steps of all episodes
before the next one starts. That gives the inputs of its matrices, and its outputs, in one pass each. A graph of which
no stages are known is one stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lram_export.backbones.protocol import Stage as BackboneStage
from lram_export.backbones.state import initial_state
from lram_export.episodes.batches import EpisodeBatch
from lram_export.model.graph import Graph
from lram_export.model.step_graph import StepGraph, episode_masks
from lram_export.quantization.episode_runs import roll_out


class Part(Protocol):
    """A part of a step graph that runs on its own."""

    def __call__(self, graph: Any, batch: EpisodeBatch, x: Tensor | None) -> Tensor:
        """From what the part before left, (steps, rows, tokens, hidden), to what this one leaves."""


@dataclass(frozen=True)
class Stage:
    """A part of the step graph and its matrices that can be quantized, in the order in which they are used."""

    matrices: tuple[str, ...]
    run: Part


def stages(graph: Graph, names: Iterable[str]) -> list[Stage]:
    """All stages of a graph, in order; ``names`` are the matrices to assign to them."""
    chosen = tuple(names)
    if not isinstance(graph, StepGraph):
        return [Stage(chosen, _whole)]

    def starting(prefix: str) -> tuple[str, ...]:
        return tuple(n for n in chosen if n.startswith(prefix))

    inside = [Stage(starting(part.name), _Inside(i)) for i, part in enumerate(graph.backbone.stages())]
    return [Stage(starting("embed_"), _embed), *inside, Stage(starting("head"), _decide)]


@torch.no_grad()
def run_stage(
    stage: Stage,
    graph: Graph,
    batches: Sequence[EpisodeBatch],
    inputs: Sequence[Tensor | None],
    watch: Sequence[str] = (),
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Run a stage over all steps.

    Returns:
        What the stage leaves, per batch; and for every watched matrix the vectors (n, in) that it was
        multiplied with in real steps.
    """
    outputs: list[Tensor] = []
    seen: dict[str, list[Tensor]] = {name: [] for name in watch}
    for batch, x in zip(batches, inputs, strict=True):
        with _inputs(graph, watch) as per_step:
            outputs.append(stage.run(graph, batch, x))
        for name, steps in per_step.items():
            for values, active in zip(steps, batch.active, strict=True):
                seen[name].append(_of_rows(values, active).reshape(-1, values.shape[-1]))
    return outputs, {name: torch.cat(vectors) for name, vectors in seen.items()}


def _of_rows(values: Tensor, active: NDArray[np.bool_]) -> Tensor:
    """Of what a matrix was given, (..., in), that of some rows: they come first, but in a module of one's own the steps
    of a sequence may come before them. Where no axis has them, what belongs to the others is kept, too."""
    axis = next((axis for axis, extent in enumerate(values.shape[:-1]) if extent == len(active)), None)
    return values if axis is None else values.index_select(axis, torch.from_numpy(active.nonzero()[0]))


@contextmanager
def _inputs(graph: Graph, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What the named matrices are given, step by step, as long as the block lasts."""
    collected: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Any:
        return lambda module, arguments: collected[name].append(arguments[0])

    layers = graph.layers()
    handles = [layers[name].register_forward_pre_hook(keep(name)) for name in names]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


def _whole(graph: Graph, batch: EpisodeBatch, x: Tensor | None) -> Tensor:
    for _ in roll_out(graph, batch):
        pass
    return torch.zeros(())  # no stage comes after


def _embed(graph: StepGraph, batch: EpisodeBatch, x: Tensor | None) -> Tensor:
    return torch.stack([graph.embed(*map(_tensor, inputs[:-1])) for inputs in batch.steps])


@dataclass(frozen=True)
class _Inside:
    """A stage of the backbone, with a memory of its own; of whichever graph it is run on."""

    number: int

    def __call__(self, graph: StepGraph, batch: EpisodeBatch, x: Tensor | None) -> Tensor:
        assert x is not None
        part: BackboneStage = graph.backbone.stages()[self.number]
        rows, tokens = batch.active.shape[1], graph.config.tokens
        specs = [t for t in graph.config.backbone.states(rows, len(tokens)) if t.name in part.states]
        state = list(initial_state(specs, graph.initial_tensors()).values())
        left = []
        for of_step, is_first in zip(x, batch.steps["is_first"], strict=True):
            after, *state = part.run(of_step, *episode_masks(_tensor(is_first), tokens), *state)
            left.append(after)
        return torch.stack(left)


def _decide(graph: StepGraph, batch: EpisodeBatch, x: Tensor | None) -> Tensor:
    assert x is not None
    for tokens in x:
        graph.decide(graph.backbone.read(tokens))
    return x


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.tensor(array)  # a copy, aligned as torch does: products of unaligned memory can differ in the last bit
