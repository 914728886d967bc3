"""Models of any size for tests, and their weights."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from lram_export.backbones.xlstm.config import XLSTMConfig
from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.episodes.steps import StepSequence
from lram_export.model.config import ModelConfig, lram_encoders
from lram_export.model.heads import ActionBins
from lram_export.model.reference import ReferenceModel


def lram(
    *sizes: int,
    state_dim: int | None = 204,
    image_shape: tuple[int, int, int] | None = (3, 64, 64),
    act_dim: int = 8,
    action_channels: int = 256,
    discrete_actions: int = 18,
    **backbone: Any,
) -> ModelConfig:
    """An LRAM with an xLSTM of these sizes."""
    return ModelConfig(
        XLSTMConfig(*sizes, **backbone),
        ActionBins(act_dim, action_channels, discrete_actions),
        lram_encoders(state_dim, image_shape),
    )


def reference_model(checkpoint: Checkpoint) -> ReferenceModel:
    """The reference model with a checkpoint's weights."""
    return ReferenceModel.from_weights(checkpoint.config, checkpoint.weights)


def lram_steps(*columns: NDArray[Any]) -> StepSequence:
    """Steps of an LRAM from its four inputs."""
    return StepSequence(dict(zip(("observation", "return_to_go", "reward", "is_first"), columns, strict=True)))


def lram_inputs(*inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Inputs of one step of an LRAM by name: three, or four with ``is_first``."""
    return dict(zip(("observation", "return_to_go", "reward", "is_first"), inputs, strict=False))
