"""The step equals the training code's way, and both leave the state that the training code leaves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lram_export.backbones.decision_transformer.config import CONTEXTS, DecisionTransformerConfig
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.checkpoints.random import random_checkpoint
from lram_export.model.config import ModelConfig, lram_encoders
from lram_export.model.heads import ActionBins
from lram_export.model.step_graph import StepGraph
from lram_export.spec.tasks import TaskSpec
from tests.backbones.comparison import ARGUMENTS, check_steps
from tests.conftest import load_golden
from tests.models import lram_inputs, reference_model

TASK = TaskSpec("custom", "state", 5, "continuous", 2, 1.0, 1.0)


@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    """Random architectures."""
    num_heads = draw(st.integers(1, 6))
    backbone = DecisionTransformerConfig(
        hidden_size=num_heads * draw(st.integers(1, 16)),
        num_blocks=draw(st.integers(1, 4)),
        num_heads=num_heads,
        ffn_size=draw(st.integers(1, 96)),
        context_length=draw(st.one_of(st.integers(2, 6), st.integers(5, 50))),
        norm_epsilon=draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
    )
    config = ModelConfig(backbone, ActionBins(2, 16, 4), lram_encoders(draw(st.integers(1, 20)), None))
    return config.in_context(draw(st.sampled_from(CONTEXTS)))


@settings(max_examples=60, deadline=None)
@given(config=model_configs(), **ARGUMENTS)
def test_a_step_equals_the_reference(config: ModelConfig, batch: int, seed: int, discrete: bool) -> None:
    check_steps(config, batch, seed, discrete)


@pytest.mark.parametrize("name", ["dt_state", "dt_image"])
def test_the_cache_is_what_the_training_code_keeps(name: str) -> None:
    """Its own keys and values after the last step of the trace, which are in order and have three tokens more."""
    golden = load_golden(name)
    trace, last = golden.trace, len(golden.trace["rewards"])
    checkpoint = load_checkpoint(golden.checkpoint)
    model = reference_model(dataclasses.replace(checkpoint, config=checkpoint.config.in_context("cache")))
    state = model.initial_state(1, golden.task)
    for step in range(int(np.flatnonzero(trace["is_first"])[-1]), last):
        observation = torch.from_numpy(trace["observations"][step : step + 1])
        to_go, first = (torch.from_numpy(trace[k][step : step + 1]) for k in ("cached_return_to_go", "is_first"))
        _, state = model.step({"observation": observation, "return_to_go": to_go, "is_first": first}, state)
    for block, found in enumerate(model.backbone.nest(state).cache):
        for part, ours in zip(("key", "value"), found, strict=True):
            np.testing.assert_allclose(ours[0], trace[f"cached_final.{block}.{part}"][:, 3:], atol=2e-5)


def test_the_last_steps_are_all_that_counts() -> None:
    """Whatever came before the window, the step after it is the same; with padding in it it is not."""
    backbone = DecisionTransformerConfig(16, 2, 2, 32, context_length=4)
    for context in CONTEXTS:
        config = ModelConfig(backbone, ActionBins(2, 16, 4), lram_encoders(5, None)).in_context(context)
        model = reference_model(random_checkpoint(config, Path(), 0))
        graph = StepGraph(model, TASK)
        generator = torch.Generator().manual_seed(1)
        steps = torch.randn(12, 1, 7, generator=generator)

        def logits(start: int, graph: StepGraph = graph, steps: torch.Tensor = steps) -> torch.Tensor:
            state = list(graph_state(graph).values())
            found = torch.zeros(0)
            for number in range(start, len(steps)):
                named = lram_inputs(
                    steps[number, :, :5],
                    steps[number, :, 5],
                    steps[number, :, 6],
                    torch.tensor([float(number == start)]),
                )
                _, found, *state = graph(*(named[t.name] for t in graph.spec.inputs), *state)
            return found

        def graph_state(graph: StepGraph, model: torch.nn.Module = model) -> dict[str, torch.Tensor]:
            return model.initial_state(1, TASK)  # type: ignore[no-any-return, operator]

        if context == "window":
            torch.testing.assert_close(logits(0), logits(5))
        assert (logits(0) - logits(len(steps) - 2)).abs().max() > 1e-2


def test_tokens_of_another_context_are_refused() -> None:
    backbone = DecisionTransformerConfig(16, 2, 2, 32, context_length=4)
    config = ModelConfig(backbone, ActionBins(2, 16, 4), lram_encoders(5, None))
    mixed = dataclasses.replace(config, tokens=config.in_context("cache").tokens)
    with pytest.raises(ValueError, match="tokens: not those of the context 'window'"):
        StepGraph(reference_model(random_checkpoint(mixed, Path(), 0)), TASK)
