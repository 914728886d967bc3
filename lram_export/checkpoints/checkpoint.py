"""A checked checkpoint, and what a user may say about one that does not say it all itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lram_export.backbones.protocol import Weights
from lram_export.errors import CheckpointError
from lram_export.model.config import ModelConfig
from lram_export.spec.interface import FieldInterface, Interface, Normalization
from lram_export.spec.tasks import TaskSpec


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint: every weight the config needs, nothing else, finite, float32.

    ``skipped`` lists weights in the file that acting does not need; ``assumptions`` what was taken from the
    published models because neither a config nor the weights say it, and where in the file the policy was found;
    ``normalization`` is what the training code did to observations of numbers, as many as the encoder takes.
    ``sha256`` is that of the weight file, of one that holds several policies one over it and which it is.
    """

    path: Path
    config: ModelConfig
    weights: Weights
    sha256: str
    skipped: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    normalization: Normalization | None = None

    @property
    def parameters(self) -> int:
        """Number of weights that acting needs (all encoders the checkpoint has included)."""
        return sum(w.numel() for w in self.weights.values())

    def interface_for(self, task: TaskSpec) -> Interface:
        """What the checkpoint itself says of a task's observation.

        Raises:
            CheckpointError: it normalizes what the task does not have: an image, more numbers, or padding that is not
                0 any more then.
        """
        count, found = task.observation_dim, self.normalization
        if found is None:
            return Interface()
        mean, deviation = (side if isinstance(side, tuple) else (side,) for side in (found.mean, found.deviation))
        if count is None or len(mean) < count:
            what = "an image" if count is None else f"{count} numbers"
            raise CheckpointError(
                f"{self.path}: state_mean: expected statistics of the task's observation, {what}, got {len(mean)}"
            )
        if any(mean[count:]):
            raise CheckpointError(
                f"{self.path}: state_mean: expected 0 where the task's {count} numbers are padded, got "
                f"{next(value for value in mean[count:] if value):g}: the policy was trained on more of them"
            )
        of_task = Normalization(mean[:count], deviation[:count], found.clip)
        return Interface(observation={"observation": FieldInterface(normalization=of_task)})


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
