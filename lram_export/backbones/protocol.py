"""What backbones have in common. Free of torch, which appears in types only."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

Weights: TypeAlias = "dict[str, torch.Tensor]"
"""Name of a weight in a checkpoint -> its values."""
State: TypeAlias = "dict[str, torch.Tensor]"
"""Name of a state tensor -> its values."""
