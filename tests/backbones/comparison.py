"""A model beside its step graph, in float32 and in float64: what the tests of backbones share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st

from lram_export.backbones.protocol import State
from lram_export.backbones.state import initial_state
from lram_export.checkpoints.random import random_checkpoint
from lram_export.model.config import ModelConfig
from lram_export.model.head_modules import MODULES
from lram_export.model.step_graph import StepGraph
from lram_export.spec.tasks import TaskSpec
from tests.models import lram_inputs, reference_model

HEAD = MODULES["action_bins"]
TOLERANCE = 1e-5
ARGUMENTS = {"batch": st.integers(1, 4), "seed": st.integers(0, 2**32 - 1), "discrete": st.booleans()}
"""Of :func:`check_steps`, beside the config."""


def check_steps(config: ModelConfig, batch: int, seed: int, discrete: bool) -> None:
    """The step graph computes what the reference computes token by token, with resets of single rows at random steps.

    In float64, where rounding is out of the way, it is the same function to 1e-11. In float32 it is within
    1e-5, plus ten times what the reference's own float32 step is off its float64 step: a norm over a few nearly
    equal values amplifies rounding without bound, in the reference as well as in the chunk.
    """
    single, double = (Comparison(config, batch, seed, discrete, t) for t in (torch.float32, torch.float64))
    state = double.model.initial_state(batch, double.task)
    for inputs in random_inputs(single.task, batch, seed):
        exact = double.single_steps(inputs, state)
        assert largest_error(exact, double.chunk(inputs, state)) <= 1e-11
        reference = single.single_steps(inputs, state)
        rounding = largest_error(exact, reference)
        assert largest_error(reference, single.chunk(inputs, state)) <= TOLERANCE + 10 * rounding
        state = dict(zip(state, reference[1:], strict=True))


class Comparison:
    """A model in some precision beside its chunked step graph."""

    def __init__(self, config: ModelConfig, batch: int, seed: int, discrete: bool, dtype: torch.dtype) -> None:
        self.config, self.dtype = config, dtype
        self.model = reference_model(random_checkpoint(config, Path(), seed)).to(dtype)
        action, action_dim = ("discrete", 1) if discrete else ("continuous", config.head.act_dim)
        dim = 1 + seed % config.encoder("state").dim
        self.task = TaskSpec("custom", "state", dim, action, action_dim, 1.0, 1.0)  # type: ignore[arg-type]
        self.graph = StepGraph(self.model, self.task, batch)

    def single_steps(self, inputs: list[torch.Tensor], state: State) -> list[torch.Tensor]:
        """Logits and next state by the reference, token by token."""
        head, next_state = self.model.step(
            lram_inputs(*self._cast(inputs)), dict(zip(state, self._cast(state.values()), strict=True))
        )
        return [HEAD.select(head, self.config.head, self.task), *next_state.values()]

    def chunk(self, inputs: list[torch.Tensor], state: State) -> list[torch.Tensor]:
        """Logits and next state by the step graph."""
        named = lram_inputs(*self._cast(inputs))
        given = [named[tensor.name] for tensor in self.graph.spec.inputs]
        action, logits, *next_state = self.graph(*given, *self._cast(state.values()))
        assert logits.dtype == self.dtype
        np.testing.assert_array_equal(action, HEAD.decode(logits, self.config.head, self.task))
        return [logits, *next_state]

    def _cast(self, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        return [t.to(self.dtype) for t in tensors]


def random_inputs(task: TaskSpec, batch: int, seed: int, steps: int = 6) -> Iterator[list[torch.Tensor]]:
    """Random steps; single rows start an episode at random."""
    random = torch.Generator().manual_seed(seed)
    for step in range(steps):
        observation = torch.randn(batch, task.observation_dim or 0, generator=random)
        return_to_go, reward = torch.randn(2, batch, generator=random)
        is_first = (torch.rand(batch, generator=random) < 0.3).float() if step else torch.ones(batch)
        yield [observation, return_to_go, reward, is_first]


def largest_error(expected: list[torch.Tensor], actual: list[torch.Tensor]) -> float:
    """Over all tensors; relative where a value is larger than 1, else absolute."""
    return max(error(*pair) for pair in zip(expected, actual, strict=True))


def initial(config: ModelConfig, batch: int) -> State:
    """The state at the start of an episode."""
    return initial_state(config.backbone.states(batch, len(config.tokens)), {})


def error(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Largest one; relative where a value is larger than 1, else absolute."""
    return float(((expected - actual).abs() / expected.abs().clamp(min=1.0)).max())
