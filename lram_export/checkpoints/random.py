"""Random checkpoints of the published sizes, for benchmarks (`lram-export new`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lram_export.backbones.xlstm.config import preset_sizes
from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.checkpoints.folder import CONFIG_FILE
from lram_export.model.config import ModelConfig, lram_encoders
from lram_export.model.heads import ActionBins

if TYPE_CHECKING:
    from pathlib import Path

    import torch

PUBLISHED_STATE_DIM, PUBLISHED_IMAGE_SHAPE = 204, (3, 64, 64)


def preset_config(preset: str, slstm_at: tuple[int, ...] = (), image: bool = False) -> ModelConfig:
    """The config of a published size.

    Args:
        preset: a key of :data:`~lram_export.backbones.xlstm.config.PRESETS`.
        slstm_at: blocks that are sLSTM blocks.
        image: add the image encoder.

    Raises:
        ValueError: ``slstm_at`` names a block that does not exist.
    """
    encoders = lram_encoders(PUBLISHED_STATE_DIM, PUBLISHED_IMAGE_SHAPE if image else None)
    return ModelConfig(preset_sizes(preset, slstm_at), ActionBins(), encoders)


def random_checkpoint(
    config: ModelConfig, path: Path, seed: int = 0, advance: Callable[[int], None] | None = None
) -> Checkpoint:
    """A checkpoint in which every weight is random and none is trivial.

    Matrices keep the variance of their input, norms scatter around 1, forget gates remember for tens to
    hundreds of steps (biases spread over 2..6), so that activations and states stay in the range of a trained
    model's. ``advance`` is told how many weights have been drawn.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for spec in config.weights():
        drawn = spec.draw.mean + spec.draw.deviation * torch.randn(spec.shape, generator=generator)
        if spec.draw.ramp is not None:
            start, stop = spec.draw.ramp
            drawn[start:stop] += torch.linspace(2.0, 6.0, stop - start)
        weights[spec.name] = drawn
        if advance is not None:
            advance(drawn.numel())
    return Checkpoint(path / CONFIG_FILE, config, weights, sha256="")
