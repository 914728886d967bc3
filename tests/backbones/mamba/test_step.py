"""The chunked step equals the reference token by token, and both leave the state that the training code leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lram_export.backbones.mamba.config import MambaConfig
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.checkpoints.random import random_checkpoint
from lram_export.model.config import ModelConfig, lram_encoders
from lram_export.model.heads import ActionBins
from lram_export.model.step_graph import StepGraph
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import state_name
from tests.backbones.comparison import ARGUMENTS, check_steps, initial
from tests.conftest import load_golden
from tests.models import lram_inputs, reference_model


@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    """Random architectures."""
    backbone = MambaConfig(
        hidden_size=draw(st.integers(2, 48)),
        num_blocks=draw(st.integers(1, 4)),
        inner_size=draw(st.integers(1, 96)),
        state_size=draw(st.integers(1, 24)),
        dt_rank=draw(st.integers(1, 8)),
        conv_kernel_size=draw(st.integers(2, 5)),
        bias=draw(st.booleans()),
        conv_bias=draw(st.booleans()),
        rms_norm=draw(st.booleans()),
        norm_epsilon=draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
    )
    return ModelConfig(backbone, ActionBins(2, 16, 4), lram_encoders(draw(st.integers(1, 20)), None))


@settings(max_examples=30, deadline=None)
@given(config=model_configs(), **ARGUMENTS)
def test_chunk_equals_the_reference_token_by_token(config: ModelConfig, batch: int, seed: int, discrete: bool) -> None:
    check_steps(config, batch, seed, discrete)


@pytest.mark.parametrize("name", ["mamba_state", "mamba_image"])
def test_the_state_is_what_the_training_code_keeps(name: str) -> None:
    """Its own caches after the last step of the trace, behind the reward token of 0 that it has seen by then."""
    golden = load_golden(name)
    trace, last = golden.trace, len(golden.trace["rewards"])
    model = reference_model(load_checkpoint(golden.checkpoint))
    state = model.initial_state(1, golden.task)
    no_reward = torch.zeros(1)
    inputs = {}
    for step in range(int(np.flatnonzero(trace["is_first"])[-1]), last):
        observation = torch.from_numpy(trace["observations"][step : step + 1])
        to_go, first = (torch.from_numpy(trace[k][step : step + 1]) for k in ("cached_return_to_go", "is_first"))
        inputs = lram_inputs(observation, to_go, no_reward, first)
        _, state = model.step(inputs, state)
    reward = model.embed(inputs)[:, :1]
    _, after = model.backbone.token(reward, model.backbone.nest(state))
    for block, (window, memory) in after.items():
        np.testing.assert_allclose(window[0], trace[f"cached_final.{block}.conv"], atol=2e-5)
        np.testing.assert_allclose(memory[0], trace[f"cached_final.{block}.ssm"], atol=2e-5)


def test_hundreds_of_steps_do_not_drift_from_float64() -> None:
    config = ModelConfig(MambaConfig(32, 2, 64, state_size=16, dt_rank=2), ActionBins(2, 16, 4), lram_encoders(5, None))
    model = reference_model(random_checkpoint(config, Path(), 0))
    graph = StepGraph(model, TaskSpec("custom", "state", 5, "continuous", 2, 1.0, 1.0))
    exact, generator = reference_model(random_checkpoint(config, Path(), 0)).double(), torch.Generator().manual_seed(1)
    state = initial(config, 1)
    truth, ours = {name: value.double() for name, value in state.items()}, list(state.values())
    for step in range(400):
        inputs = [torch.randn(1, 5, generator=generator), *torch.randn(2, 1, generator=generator)]
        inputs.append(torch.full((1,), float(step == 0)))
        _, truth = exact.step(lram_inputs(*(t.double() for t in inputs)), truth)
        _, _, *ours = graph(*inputs, *ours)
    memory, expected = ours[-1], truth[state_name(1, "ssm")]
    assert float((memory - expected).norm() / expected.norm()) < 1e-5


def test_a_memory_that_never_fades_stays_finite() -> None:
    """A_log so small that A is 0, and step sizes beyond the threshold of softplus."""
    config = ModelConfig(MambaConfig(8, 1, 16, state_size=4, dt_rank=1), ActionBins(2, 16, 4), lram_encoders(5, None))
    checkpoint = random_checkpoint(config, Path(), 0)
    checkpoint.weights["encoder.layers.0.mixer.A_log"].fill_(-200.0)
    checkpoint.weights["encoder.layers.0.mixer.dt_proj.bias"].fill_(100.0)
    model = reference_model(checkpoint)
    graph = StepGraph(model, TaskSpec("custom", "state", 5, "continuous", 2, 1.0, 1.0))
    state = initial(config, 1)
    for step in range(20):
        inputs = (torch.ones(1, 5), torch.ones(1), torch.ones(1), torch.full((1,), float(step == 0)))
        _, _, *after = graph(*inputs, *state.values())
        _, expected = model.step(lram_inputs(*inputs), state)
        for name, found in zip(state, after, strict=True):
            torch.testing.assert_close(found, expected[name])
        state = expected
    assert float(state[state_name(0, "ssm")].abs().max()) > 100
