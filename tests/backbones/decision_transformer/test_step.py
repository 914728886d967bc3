"""The step equals the training code's way, and both leave the state that the training code leaves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lram_export.backbones.decision_transformer.config import CONTEXTS, WINDOW, DecisionTransformerConfig
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


@settings(max_examples=30, deadline=None)
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


@pytest.mark.parametrize("context", CONTEXTS)
def test_what_a_window_does_not_hold_is_forgotten_and_padding_is_seen(context: str) -> None:
    """With a cache older steps live on in the keys and values of those that are still there."""
    backbone = DecisionTransformerConfig(16, 2, 2, 32, context_length=4)
    config = ModelConfig(backbone, ActionBins(2, 16, 4), lram_encoders(5, None)).in_context(context)
    model = reference_model(random_checkpoint(config, Path(), 0))
    graph = StepGraph(model, TASK)
    steps = torch.randn(12, 1, 7, generator=torch.Generator().manual_seed(1))

    def last_logits(start: int) -> torch.Tensor:
        state, logits = list(model.initial_state(1, TASK).values()), torch.zeros(0)
        for number, values in enumerate(steps[start:]):
            inputs = lram_inputs(values[:, :5], values[:, 5], values[:, 6], torch.tensor([float(number == 0)]))
            _, logits, *state = graph(*(inputs[tensor.name] for tensor in graph.spec.inputs), *state)
        return logits

    if context == WINDOW:
        torch.testing.assert_close(last_logits(0), last_logits(8))
    else:
        assert (last_logits(0) - last_logits(8)).abs().max() > 1e-3
    assert (last_logits(0) - last_logits(10)).abs().max() > 1e-2


def test_tokens_of_another_context_are_refused() -> None:
    backbone = DecisionTransformerConfig(16, 2, 2, 32, context_length=4)
    config = ModelConfig(backbone, ActionBins(2, 16, 4), lram_encoders(5, None))
    mixed = dataclasses.replace(config, tokens=config.in_context("cache").tokens)
    with pytest.raises(ValueError, match="tokens: not those of the context 'window'"):
        StepGraph(reference_model(random_checkpoint(mixed, Path(), 0)), TASK)
