"""Random checkpoints of the published sizes, for benchmarks (`lram-export new`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lram_export.backbones.registry import backbone_module
from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.checkpoints.folder import CONFIG_FILE
from lram_export.model.config import ModelConfig, lram_encoders
from lram_export.model.heads import ActionBins

if TYPE_CHECKING:
    import torch

PUBLISHED_STATE_DIM, PUBLISHED_IMAGE_SHAPE = 204, (3, 64, 64)


def preset_config(preset: str, backbone: str = "xlstm", *, image: bool = False, **choices: Any) -> ModelConfig:
    """The config of a published size.

    Args:
        preset: a key of ``PRESETS`` in the backbone's ``config``.
        backbone: its kind.
        image: add the image encoder.
        choices: what the sizes leave open, as ``preset_sizes`` of the backbone takes it: ``slstm_at`` of `xlstm`.

    Raises:
        ValueError: a choice that the size does not allow.
    """
    encoders = lram_encoders(PUBLISHED_STATE_DIM, PUBLISHED_IMAGE_SHAPE if image else None)
    sizes = backbone_module(backbone, "config").preset_sizes(preset, **choices)
    return ModelConfig(sizes, ActionBins(), encoders)


def random_checkpoint(
    config: ModelConfig, path: str | Path, seed: int = 0, advance: Callable[[int], None] | None = None
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
    return Checkpoint(Path(path) / CONFIG_FILE, config, weights, sha256="")
