"""The chunked step equals three single steps of the `xlstm` package."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lram_export.checkpoint import Checkpoint
from lram_export.config import ModelConfig
from lram_export.model import ReferenceModel, decode_action, initial_state, prune_logits
from lram_export.presets import random_checkpoint
from lram_export.step import StepGraph, log_sigmoid, pack_blocks
from lram_export.tasks import TaskSpec

TOLERANCE = 1e-5


@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    heads = draw(st.sampled_from([1, 2, 4]))
    slstm_heads = draw(st.sampled_from([1, 2, 4]))
    hidden = 4 * draw(st.integers(1, 12)) * max(slstm_heads // 4, 1)
    hidden += -hidden % slstm_heads
    blocks = draw(st.integers(1, 4))
    return ModelConfig(
        hidden_size=hidden,
        num_blocks=blocks,
        num_heads=heads,
        inner_size=4 * heads * draw(st.integers(1, 8)),
        slstm_at=tuple(sorted(draw(st.sets(st.integers(0, blocks - 1))))),
        slstm_num_heads=slstm_heads,
        ffn_size=draw(st.integers(1, 48)),
        ffn_activation=draw(st.sampled_from(["gelu", "relu", "swish"])),
        conv_kernel_size=draw(st.integers(2, 5)),
        qkv_block_size=draw(st.sampled_from([1, 2, 4])),
        state_dim=draw(st.integers(1, 20)),
        image_shape=None,
        act_dim=draw(st.integers(1, 3)),
        action_channels=draw(st.integers(1, 16)),
        discrete_actions=draw(st.integers(1, 8)),
    )


@settings(max_examples=60, deadline=None)
@given(config=model_configs(), batch=st.integers(1, 4), seed=st.integers(0, 2**32 - 1), discrete=st.booleans())
def test_chunk_equals_single_steps_of_the_package(config: ModelConfig, batch: int, seed: int, discrete: bool) -> None:
    """Random sizes, heads, sLSTM positions, and resets of single rows at random steps."""
    assert config.state_dim is not None
    model = ReferenceModel.from_checkpoint(_checkpoint(config, seed))
    action, action_dim = ("discrete", 1) if discrete else ("continuous", config.act_dim)
    observation_dim = 1 + seed % config.state_dim
    task = TaskSpec("custom", "state", observation_dim, action, action_dim, 1.0, 1.0)  # type: ignore[arg-type]
    graph = StepGraph(model, task, batch)
    random = torch.Generator().manual_seed(seed)
    state = initial_state(config, batch)
    for step in range(6):
        observation = torch.randn(batch, observation_dim, generator=random)
        return_to_go, reward = torch.randn(2, batch, generator=random)
        is_first = (torch.rand(batch, generator=random) < 0.3).float() if step else torch.ones(batch)
        inputs = (observation, return_to_go, reward, is_first)
        expected, expected_state = model.step(*inputs, state)
        chosen, logits, *next_state = graph(*inputs, *state.values())

        _assert_close("action_logits", prune_logits(expected, config, task), logits)
        for name, actual in zip(state, next_state, strict=True):
            _assert_close(name, expected_state[name], actual)
        np.testing.assert_array_equal(chosen, decode_action(logits, config, task))
        state = expected_state  # each step is compared from the same state


def test_row_that_starts_an_episode_forgets_everything() -> None:
    """Whatever state a row had, with is_first it does what a fresh row does; other rows go on."""
    config = ModelConfig(32, 3, 4, 64, slstm_at=(1,), ffn_size=64, state_dim=7, image_shape=None)
    graph = StepGraph(
        ReferenceModel.from_checkpoint(_checkpoint(config, 0)),
        TaskSpec("custom", "state", 7, "continuous", 8, 1.0, 1.0),
        batch_size=2,
    )
    fresh = initial_state(config, 2)
    used = {name: torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for name, t in fresh.items()}
    inputs = (torch.randn(2, 7), torch.ones(2), torch.randn(2))
    first, both = torch.tensor([1.0, 0.0]), torch.ones(2)
    from_fresh = graph(*inputs, both, *fresh.values())
    from_used = graph(*inputs, first, *used.values())
    for expected, actual in zip(from_fresh, from_used, strict=True):
        torch.testing.assert_close(actual[0], expected[0], atol=1e-6, rtol=0)
    assert not torch.allclose(from_fresh[1][1], from_used[1][1])


def test_reward_token_matters_except_at_the_first_step() -> None:
    config = ModelConfig(16, 2, 2, 32, state_dim=5, image_shape=None)
    model = ReferenceModel.from_checkpoint(_checkpoint(config, 0))
    graph = StepGraph(model, TaskSpec("custom", "state", 5, "continuous", 8, 1.0, 1.0))
    state = tuple(initial_state(config, 1).values())
    observation, one = torch.randn(1, 5), torch.ones(1)

    def logits(reward: float, is_first: float) -> torch.Tensor:
        return graph(observation, one, reward * one, is_first * one, *state)[1]

    assert torch.equal(logits(5.0, 1.0), logits(0.0, 1.0))
    assert not torch.allclose(logits(5.0, 0.0), logits(0.0, 0.0), atol=1e-3)


@pytest.mark.parametrize("extreme", [-300.0, -90.0, 0.0, 90.0])
def test_log_sigmoid_does_not_underflow(extreme: float) -> None:
    x = torch.tensor([extreme])
    torch.testing.assert_close(log_sigmoid(x), torch.nn.functional.logsigmoid(x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("count", "size", "packed"), [(8, 4, 16), (6, 4, 12), (5, 4, 4), (7, 20, 20), (32, 1, 16)])
def test_packed_blocks_are_the_same_matrix(count: int, size: int, packed: int) -> None:
    weight = torch.randn(count, size, size)
    result = pack_blocks(weight)
    assert result.shape == (count * size // packed, packed, packed)
    assert torch.equal(torch.block_diag(*result), torch.block_diag(*weight))


def test_forget_gates_that_close_stay_exact() -> None:
    """Very negative and very positive gates must not overflow or lose the state."""
    config = ModelConfig(16, 1, 2, 32, state_dim=5, image_shape=None)
    checkpoint = _checkpoint(config, 0)
    for gate, value in (("fgate", -60.0), ("igate", 40.0)):
        weights = dict(checkpoint.weights)
        key = f"encoder.layers.blocks.0.xlstm.mlstm_cell.{gate}.bias"
        weights[key] = torch.full_like(weights[key], value)
        model = ReferenceModel.from_checkpoint(dataclasses.replace(checkpoint, weights=weights))
        graph = StepGraph(model, TaskSpec("custom", "state", 5, "continuous", 8, 1.0, 1.0))
        state = initial_state(config, 1)
        for step in range(20):
            inputs = (torch.randn(1, 5), torch.ones(1), torch.ones(1), torch.full((1,), float(step == 0)))
            expected, next_state = model.step(*inputs, state)
            _, logits, *chunked = graph(*inputs, *state.values())
            _assert_close("action_logits", expected.view_as(logits), logits)
            for name, actual in zip(state, chunked, strict=True):
                _assert_close(name, next_state[name], actual)
            state = next_state


def _checkpoint(config: ModelConfig, seed: int) -> Checkpoint:
    from pathlib import Path

    return random_checkpoint(config, Path(), seed)


def _assert_close(name: str, expected: torch.Tensor, actual: torch.Tensor) -> None:
    error = (expected - actual).abs() / expected.abs().clamp(min=1.0)
    assert float(error.max()) <= TOLERANCE, f"{name}: {float(error.max()):.3g}"
