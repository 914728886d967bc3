"""Encoders as torch modules: as the training code has them, and as part of the step graph."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lram_export.backbones.layers import linear
from lram_export.model.encoders import IMPALA_CHANNELS, Encoder, ImageEncoder, ScalarEncoder, StateEncoder
from lram_export.spec.tasks import TaskSpec


class ScalarModule(nn.Linear):
    """A number per row, through a linear layer."""

    def __init__(self, encoder: ScalarEncoder, hidden_size: int) -> None:
        super().__init__(1, hidden_size)

    def forward(self, values: Tensor) -> Tensor:
        """(B,) float32 -> (B, hidden)."""
        return super().forward(values[:, None])


class StateModule(nn.Linear):
    """Numbers, zero-padded as in training, through a linear layer."""

    def __init__(self, encoder: StateEncoder, hidden_size: int) -> None:
        super().__init__(encoder.dim, hidden_size)

    def forward(self, observation: Tensor) -> Tensor:
        """(B, n) float32 with n up to the layer's inputs -> (B, hidden)."""
        return super().forward(F.pad(observation, (0, self.in_features - observation.shape[-1])))


class ImpalaCNN(nn.Module):
    """Image encoder of arXiv 1802.01561 as the original names it: three blocks, then one linear layer."""

    def __init__(self, encoder: ImageEncoder, hidden_size: int) -> None:
        super().__init__()
        channels = (encoder.shape[0], *IMPALA_CHANNELS)
        self.cnn = nn.ModuleList(ImpalaBlock(i, o) for i, o in pairwise(channels))
        self.linear = nn.Sequential(nn.Linear(encoder.features, hidden_size))

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, hidden)."""
        x = image.to(torch.float32) / 255.0
        for block in self.cnn:
            x = block(x)
        return F.relu(self.linear(F.relu(x).flatten(1)))


class ImpalaBlock(nn.Module):
    """Convolution, 3x3 max pooling with stride 2, two residual units."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.residual_0 = ImpalaResidual(channels)
        self.residual_1 = ImpalaResidual(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels, ceil(H / 2), ceil(W / 2))."""
        x = F.max_pool2d(self.conv(x), 3, stride=2, padding=1)
        return self.residual_1(self.residual_0(x))  # type: ignore[no-any-return]


class ImpalaResidual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        return x + self.conv_1(F.relu(self.conv_0(F.relu(x))))  # type: ignore[no-any-return]


class ImageStep(nn.Module):
    """The image encoder of a step graph."""

    def __init__(self, cnn: ImpalaCNN) -> None:
        super().__init__()
        self.cnn = cnn

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, hidden)."""
        embedded: Tensor = self.cnn(image)
        return embedded


def _pruned(layer: Any, task: TaskSpec) -> nn.Module:
    """Without the columns that only padding zeros meet."""
    return linear(layer.weight[:, : task.observation_dim], layer.bias)


REFERENCE: dict[str, Callable[[Any, int], nn.Module]] = {
    ScalarEncoder.kind: ScalarModule,
    StateEncoder.kind: StateModule,
    ImageEncoder.kind: ImpalaCNN,
}
"""Kind -> the module of the training code, from an encoder and the hidden size: the input as a step takes it -> (B,
hidden)."""
STEP: dict[str, Callable[[Any, TaskSpec], nn.Module]] = {
    ScalarEncoder.kind: lambda module, task: module,
    StateEncoder.kind: _pruned,
    ImageEncoder.kind: lambda module, task: ImageStep(module),
}
"""Kind -> the module of the step graph, from that of the training code, with only what a task needs."""


def reference_module(encoder: Encoder, hidden_size: int) -> nn.Module:
    """The encoder as the training code has it."""
    return REFERENCE[encoder.kind](encoder, hidden_size)


def step_module(encoder: Encoder, reference: nn.Module, task: TaskSpec) -> nn.Module:
    """The encoder as part of the step graph; weights are shared where they are used whole."""
    return STEP[encoder.kind](reference, task)
