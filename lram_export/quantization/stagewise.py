"""Runs recorded episodes through a step graph stage by stage: the embedding, every block by itself, the head.

A block's recurrent state depends on nothing but its own inputs, so a stage can see all steps of all episodes
before the next one starts. That gives the inputs of a block's matrices, and its outputs, in one pass each.
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

from lram_export.backbones.xlstm.config import state_specs
from lram_export.episodes.batches import EpisodeBatch
from lram_export.model.step_graph import StepGraph, episode_masks


class Part(Protocol):
    """A part of a step graph that runs on its own."""

    def __call__(self, graph: StepGraph, batch: EpisodeBatch, x: Tensor | None) -> Tensor:
        """From what the part before left, (steps, rows, 3, hidden), to what this one leaves."""


@dataclass(frozen=True)
class Stage:
    """A part of the step graph and its matrices that can be quantized, in the order in which they are used."""

    matrices: tuple[str, ...]
    run: Part


def stages(graph: StepGraph, names: Iterable[str]) -> list[Stage]:
    """All stages of a graph, in order; ``names`` are the matrices to assign to them."""
    chosen = tuple(names)

    def starting(prefix: str) -> tuple[str, ...]:
        return tuple(n for n in chosen if n.startswith(prefix))

    blocks = [Stage(starting(f"blocks.{i}."), _Block(i)) for i in range(len(graph.blocks))]
    return [Stage(starting("embed_"), _embed), *blocks, Stage(starting("head"), _decide)]


@torch.no_grad()
def run_stage(
    stage: Stage,
    graph: StepGraph,
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
                rows = values[torch.from_numpy(active)]
                seen[name].append(rows.reshape(-1, rows.shape[-1]))
    return outputs, {name: torch.cat(vectors) for name, vectors in seen.items()}


@contextmanager
def _inputs(graph: StepGraph, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What the named matrices are given, step by step, as long as the block lasts."""
    collected: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Any:
        return lambda module, arguments: collected[name].append(arguments[0])

    handles = [graph.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


def _embed(graph: StepGraph, batch: EpisodeBatch, x: Tensor | None) -> Tensor:
    return torch.stack([graph.embed(*map(_tensor, arguments[:3])) for arguments in batch.steps])


@dataclass(frozen=True)
class _Block:
    number: int

    def __call__(self, graph: StepGraph, batch: EpisodeBatch, x: Tensor | None) -> Tensor:
        assert x is not None
        prefix = f"state.{self.number}."
        specs = [t for t in state_specs(graph.config, batch.active.shape[1]) if t.name.startswith(prefix)]
        state = [torch.full(t.shape, t.initial or 0.0) for t in specs]
        left = []
        for tokens, is_first in zip(x, batch.steps.is_first, strict=True):
            after, *state = graph.blocks[self.number](tokens, *episode_masks(_tensor(is_first)), *state)
            left.append(after)
        return torch.stack(left)


def _decide(graph: StepGraph, batch: EpisodeBatch, x: Tensor | None) -> Tensor:
    assert x is not None
    for tokens in x:
        graph.decide(tokens)
    return x


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.tensor(array)  # a copy, aligned as torch does: products of unaligned memory can differ in the last bit
