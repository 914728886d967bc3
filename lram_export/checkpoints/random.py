"""Random checkpoints of the published sizes, for benchmarks (`lram-export new`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from lram_export.backbones.xlstm.config import round_up
from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.checkpoints.folder import CONFIG_FILE
from lram_export.model.config import ModelConfig, expected_shapes

if TYPE_CHECKING:
    from pathlib import Path

    import torch

PRESETS: dict[str, tuple[int, int]] = {
    "16m": (512, 8),
    "48m": (768, 12),
    "110m": (1024, 16),
    "206m": (1280, 20),
    "408m": (1536, 28),
}
"""Published sizes (arXiv 2410.22391): (hidden size, blocks)."""


def preset_config(preset: str, slstm_at: tuple[int, ...] = (), image: bool = False) -> ModelConfig:
    """The config of a published size.

    Args:
        preset: a key of :data:`PRESETS`.
        slstm_at: blocks that are sLSTM blocks.
        image: add the image encoder.

    Raises:
        ValueError: ``slstm_at`` names a block that does not exist.
    """
    hidden_size, num_blocks = PRESETS[preset]
    return ModelConfig(
        hidden_size=hidden_size,
        num_blocks=num_blocks,
        num_heads=4,
        inner_size=round_up(2 * hidden_size),
        slstm_at=slstm_at,
        ffn_size=round_up(1.3 * hidden_size) if slstm_at else 0,
        image_shape=(3, 64, 64) if image else None,
    )


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
    for name, shape in expected_shapes(config).items():
        weights[name] = _random_weight(name, shape, config, generator)
        if advance is not None:
            advance(weights[name].numel())
    return Checkpoint(path / CONFIG_FILE, config, weights, sha256="")


def _random_weight(name: str, shape: tuple[int, ...], config: ModelConfig, generator: torch.Generator) -> torch.Tensor:
    import torch

    normal = torch.randn(shape, generator=generator)
    if name.endswith("learnable_skip") or name == "embed_ln.weight":
        return 1.0 + 0.1 * normal
    if "norm.weight" in name:  # stored as the difference to 1
        return 0.1 * normal
    if name.endswith("fgate.bias"):
        return torch.linspace(2.0, 6.0, shape[0]) + 0.1 * normal
    if name.endswith("slstm_cell._bias_"):
        bias = (0.1 * normal).view(4, -1)
        bias[1] += torch.linspace(2.0, 6.0, bias.shape[1])  # gates i, f, z, o
        return bias.view(-1)
    if name.endswith(".bias"):
        return 0.1 * normal
    if name.endswith(("proj_down.weight", "conv_1.weight")):  # ends of residual branches
        return normal / math.sqrt(normal[0].numel() * 2 * config.num_blocks)
    if name.endswith("_recurrent_kernel_"):
        return 0.5 * normal / math.sqrt(shape[-1])
    return normal / math.sqrt(normal[0].numel() if len(shape) != 3 else shape[-1])
