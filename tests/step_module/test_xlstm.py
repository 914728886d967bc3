"""Policies around stacks of the `xlstm` package, one token per step."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from xlstm import (
    FeedForwardConfig,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMBlockStack,
    xLSTMBlockStackConfig,
)
from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

from lram_export import ExportOptions, Field, export_bundle
from lram_export.episodes.steps import random_steps
from lram_export.errors import UsageError
from lram_export.runtimes import load_verifier
from lram_export.step_module.xlstm import xlstm_policy
from tests.conftest import SLOW

ROWS, STEPS, CLOSE = 2, 100, 1e-4
EVERY = ("pytorch", "onnxruntime", "openvino", "native", "tensorrt", "tvm")
FEW = ("onnxruntime", "native")


def small(**changed: Any) -> xLSTMBlockStack:
    """Two mLSTM blocks around an sLSTM block."""
    torch.manual_seed(0)
    slstm = sLSTMBlockConfig(
        slstm=sLSTMLayerConfig(backend="vanilla", num_heads=2), feedforward=FeedForwardConfig(act_fn="gelu")
    )
    config = xLSTMBlockStackConfig(
        mlstm_block=mLSTMBlockConfig(mlstm=mLSTMLayerConfig(num_heads=4, **changed)),
        slstm_block=slstm,
        num_blocks=3,
        embedding_dim=32,
        slstm_at=[1],
        context_length=8,
    )
    return xLSTMBlockStack(config)


def large(width: int, blocks: int = 2) -> xLSTMLarge:
    """The recipe of the 7B model at a small size, on kernels that every processor runs."""
    torch.manual_seed(width)
    return xLSTMLarge(
        xLSTMLargeConfig(
            embedding_dim=width,
            num_heads=4,
            num_blocks=blocks,
            vocab_size=16,
            mode="inference",
            chunkwise_kernel="chunkwise--native_autograd",
            sequence_kernel="native_sequence__native",
            step_kernel="native",
            return_last_states=True,
        )
    )


class Looking(nn.Module):
    """An encoder of one's own: an image and some numbers become a token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_image = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, width))
        self.of_numbers = nn.Sequential(nn.Linear(5, width), nn.LayerNorm(width))

    def forward(self, image: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        return self.of_image(image.float() / 255) + self.of_numbers(numbers)


class Deciding(nn.Module):
    """A head with two outputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean, self.value = nn.Linear(width, 3), nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"action": torch.tanh(self.mean(x)), "value": self.value(x)[:, 0]}


OBSERVATIONS = {"image": Field((3, 12, 12), "uint8"), "numbers": Field(5)}
ACTIONS = {"action": 3, "value": ()}


def parts(width: int) -> dict[str, Any]:
    torch.manual_seed(1)
    return {"encoder": Looking(width).eval(), "head": Deciding(width).eval()}


def compare(policy: Any, parts: dict[str, Any], step: Any, targets: tuple[str, ...], path: Path) -> None:
    """Every target beside the package's own step, row by row, with new episodes in between."""
    options = ExportOptions(targets, ROWS, report=False, reference_steps=16)
    bundle = export_bundle(policy, None, path, options)
    inputs = random_steps(bundle.manifest.spec, None, STEPS, seed=5, episode=23)
    runtimes = {target: load_verifier(target, bundle.load_artifact(target), 1)[0] for target in targets}
    states: list[Any] = [None] * ROWS
    for number, arguments in enumerate(inputs):
        expected = []
        for row in range(ROWS):
            if inputs["is_first"][number, row]:
                states[row] = None
            given = [torch.tensor(inputs[name][number, row : row + 1]) for name in ("image", "numbers")]
            with torch.no_grad():
                x, states[row] = step(parts["encoder"](*given)[:, None], copy.deepcopy(states[row]))
                expected.append(parts["head"](x[:, 0])["action"][0].numpy())
        for target, runtime in runtimes.items():
            found = runtime.step(*arguments)["action"]
            np.testing.assert_allclose(found, np.stack(expected), atol=CLOSE, rtol=0, err_msg=f"{target} {number}")
    for runtime in runtimes.values():
        runtime.close()


@pytest.mark.parametrize("targets", [FEW, pytest.param(EVERY, marks=SLOW)])
def test_a_stack_with_an_encoder_and_a_head_of_ones_own_does_what_the_package_does(
    targets: tuple[str, ...], tmp_path: Path
) -> None:
    stack, own = small(), parts(32)
    policy = xlstm_policy(stack, observation=OBSERVATIONS, action=ACTIONS, **own)
    compare(policy, own, stack.step, targets, tmp_path / "policy.lram")


@pytest.mark.parametrize(("width", "targets"), [(32, FEW), *(pytest.param(w, EVERY, marks=SLOW) for w in (32, 96))])
def test_the_large_xlstm_does_what_the_package_generates(width: int, targets: tuple[str, ...], tmp_path: Path) -> None:
    model, own = large(width).eval(), parts(width)
    policy = xlstm_policy(model, observation=OBSERVATIONS, action=ACTIONS, **own)
    compare(policy, own, model.backbone, targets, tmp_path / "policy.lram")


def test_without_an_encoder_the_observation_is_the_token() -> None:
    policy = xlstm_policy(small(), observation=32, action=32)
    assert list(policy.observation) == ["observation", "is_first"] and policy.state["block1_y"].shape == (32,)
    assert policy.state["block0_C"].shape == (4, 16, 16)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda stack: nn.Linear(3, 3), "stack: expected one of xLSTMBlockStack, xLSTMLargeBlockStack, got Linear"),
        (lambda stack: _with(stack, add_post_blocks_norm=False), "add_post_blocks_norm: expected True"),
        (lambda stack: _only_slstm(), "expected an mLSTM block among its blocks"),
        (lambda stack: _biased(), "its own step and ours are .* apart: .* such as a bias of q, k and v"),
        (lambda stack: _triton(), "step_kernel: expected 'native', .* got 'triton'"),
    ],
)
def test_an_option_that_is_not_supported_is_named(change: Any, told: str) -> None:
    with pytest.raises(UsageError, match=f"xlstm_policy: stack: {told.removeprefix('stack: ')}"):
        xlstm_policy(change(small()), observation=32, action=32)


def _with(stack: Any, **changed: Any) -> Any:
    stack.config = dataclasses.replace(stack.config, **changed)
    return stack


def _biased() -> xLSTMBlockStack:
    config = dataclasses.replace(small().config, bias=True)
    stack = xLSTMBlockStack(config)
    for name, parameter in stack.named_parameters():
        if name.endswith("q_proj.bias"):
            parameter.data.fill_(1.0)
    return stack


def _only_slstm() -> xLSTMBlockStack:
    slstm = sLSTMBlockConfig(slstm=sLSTMLayerConfig(backend="vanilla", num_heads=2), feedforward=FeedForwardConfig())
    config = xLSTMBlockStackConfig(slstm_block=slstm, num_blocks=1, embedding_dim=32, slstm_at=[0], context_length=8)
    return xLSTMBlockStack(config)


def _triton() -> xLSTMLarge:
    model = large(32)
    model.backbone.config.step_kernel = "triton"
    return model
