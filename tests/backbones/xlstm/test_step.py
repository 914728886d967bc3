"""The chunked step equals three single steps of the `xlstm` package."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lram_export.backbones.layers import log_sigmoid, pack_blocks
from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.checkpoints.random import random_checkpoint
from lram_export.model.config import ModelConfig
from lram_export.model.step_graph import StepGraph
from lram_export.spec.tasks import TaskSpec
from tests.backbones.comparison import ARGUMENTS, TOLERANCE, check_steps, error, initial
from tests.models import lram, lram_inputs, reference_model


@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    """Random architectures. Heads are at least 2 wide: the package's group norm refuses single values."""
    heads, slstm_heads = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 4]))
    hidden = 4 * draw(st.integers(1, 16))
    hidden = max(hidden, 2 * slstm_heads)
    blocks = draw(st.integers(1, 4))
    return lram(
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


@settings(max_examples=30, deadline=None)
@given(config=model_configs(), **ARGUMENTS)
def test_chunk_equals_three_single_steps_of_the_package(
    config: ModelConfig, batch: int, seed: int, discrete: bool
) -> None:
    """Any size, any place of sLSTM blocks. Of 9,000 such steps 10 needed the allowance for rounding, and three times
    the package's own error was the most."""
    check_steps(config, batch, seed, discrete)


def test_row_that_starts_an_episode_forgets_everything() -> None:
    """Whatever state a row had, with is_first it does what a fresh row does; other rows go on."""
    config = lram(32, 3, 4, 64, slstm_at=(1,), ffn_size=64, state_dim=7, image_shape=None)
    graph = StepGraph(
        reference_model(_checkpoint(config, 0)),
        TaskSpec("custom", "state", 7, "continuous", 8, 1.0, 1.0),
        batch_size=2,
    )
    fresh = initial(config, 2)
    used = {name: torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for name, t in fresh.items()}
    inputs = (torch.randn(2, 7), torch.ones(2), torch.randn(2))
    first, both = torch.tensor([1.0, 0.0]), torch.ones(2)
    from_fresh = graph(*inputs, both, *fresh.values())
    from_used = graph(*inputs, first, *used.values())
    for expected, actual in zip(from_fresh, from_used, strict=True):
        torch.testing.assert_close(actual[0], expected[0], atol=1e-6, rtol=0)
    assert not torch.allclose(from_fresh[1][1], from_used[1][1])


def test_reward_token_matters_except_at_the_first_step() -> None:
    config = lram(16, 2, 2, 32, state_dim=5, image_shape=None)
    model = reference_model(_checkpoint(config, 0))
    graph = StepGraph(model, TaskSpec("custom", "state", 5, "continuous", 8, 1.0, 1.0))
    state = tuple(initial(config, 1).values())
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
    config = lram(16, 1, 2, 32, state_dim=5, image_shape=None)
    checkpoint, generator = _checkpoint(config, 0), torch.Generator().manual_seed(0)
    for gate, value in (("fgate", -60.0), ("igate", 40.0)):
        weights = dict(checkpoint.weights)
        key = f"encoder.layers.blocks.0.xlstm.mlstm_cell.{gate}.bias"
        weights[key] = torch.full_like(weights[key], value)
        model = reference_model(dataclasses.replace(checkpoint, weights=weights))
        graph = StepGraph(model, TaskSpec("custom", "state", 5, "continuous", 8, 1.0, 1.0))
        state = initial(config, 1)
        for step in range(20):
            observation = torch.randn(1, 5, generator=generator)
            inputs = (observation, torch.ones(1), torch.ones(1), torch.full((1,), float(step == 0)))
            expected, next_state = model.step(lram_inputs(*inputs), state)
            _, logits, *chunked = graph(*inputs, *state.values())
            _assert_close("action_logits", expected.view_as(logits), logits)
            for name, actual in zip(state, chunked, strict=True):
                _assert_close(name, next_state[name], actual)
            state = next_state


def _checkpoint(config: ModelConfig, seed: int) -> Checkpoint:
    return random_checkpoint(config, Path(), seed)


def _assert_close(name: str, expected: torch.Tensor, actual: torch.Tensor) -> None:
    assert error(expected, actual) <= TOLERANCE, f"{name}: {error(expected, actual):.3g}"
