"""A checked checkpoint, and what a user may say about one that does not say it all itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lram_export.backbones.protocol import Weights
from lram_export.model.config import ModelConfig


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint: every weight the config needs, nothing else, finite, float32.

    ``skipped`` lists weights in the file that acting does not need; ``assumptions`` what was taken from the
    published models because neither a config nor the weights say it, and where in the file the policy was found;
    ``sha256`` is that of the weight file, of one that holds several policies one over it and which it is.
    """

    path: Path
    config: ModelConfig
    weights: Weights
    sha256: str
    skipped: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of weights that acting needs (all encoders the checkpoint has included)."""
        return sum(w.numel() for w in self.weights.values())


@dataclass(frozen=True)
class Hints:
    """What a user says about weights without a config; None leaves it to inference."""

    act_dim: int | None = None
    discrete_actions: int | None = None
    image_shape: tuple[int, int, int] | None = None
    num_heads: int | None = None
    context_length: int | None = None

    @property
    def of_backbone(self) -> dict[str, int]:
        """What is said of the backbone, by name; see ``HINTS`` of a backbone's module ``original``."""
        said = {"num_heads": self.num_heads, "context_length": self.context_length}
        return {name: value for name, value in said.items() if value is not None}


HINT_OPTIONS = "--act-dim, --discrete-actions, --image-shape, --num-heads, --context-length"
"""The options that say it."""
