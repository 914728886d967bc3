"""Encoders: from an observation to a token."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lram_export.backbones.layers import linear
from lram_export.model.config import IMPALA_CHANNELS, image_features
from lram_export.spec.tasks import TaskSpec

if TYPE_CHECKING:
    from lram_export.model.reference import ReferenceModel


class ImpalaCNN(nn.Module):
    """Image encoder of arXiv 1802.01561 as the original names it: three blocks, then one linear layer."""

    def __init__(self, image_shape: tuple[int, int, int], features: int) -> None:
        super().__init__()
        channels = (image_shape[0], *IMPALA_CHANNELS)
        self.cnn = nn.ModuleList(ImpalaBlock(i, o) for i, o in pairwise(channels))
        self.linear = nn.Sequential(nn.Linear(image_features(image_shape), features))

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) float32 in [0, 1] -> (B, features)."""
        for block in self.cnn:
            image = block(image)
        return F.relu(self.linear(F.relu(image).flatten(1)))


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


class ImageEncoder(nn.Module):
    """The image encoder of a step graph."""

    def __init__(self, model: ReferenceModel) -> None:
        super().__init__()
        assert model.embed_image is not None
        self.cnn = model.embed_image

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, hidden)."""
        embedded: Tensor = self.cnn(image.to(torch.float32) / 255.0)
        return embedded


def pruned_state_encoder(model: ReferenceModel, task: TaskSpec) -> nn.Linear:
    """Without the columns that only padding zeros meet."""
    assert model.embed_state is not None
    return linear(model.embed_state.weight[:, : task.observation_dim], model.embed_state.bias)
