"""Encoders: which inputs become tokens, and from which weights. Free of torch.

Each has a torch module of the same kind in :mod:`~lram_export.model.encoder_modules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from lram_export.backbones.protocol import Draw, WeightSpec
from lram_export.spec.bounds import IMAGE, MOST_OBSERVATION
from lram_export.spec.json_fields import Fields, whole_number
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import TensorSpec

IMPALA_CHANNELS = (16, 32, 32)
"""Channels of the three blocks of the IMPALA CNN (arXiv 1802.01561), each of which halves the image."""
NEAR_ZERO = Draw(0.1)


class Encoder(Protocol):
    """From an input of a step to a token."""

    kind: ClassVar[str]
    """Its name in JSON; for an observation also what :class:`~lram_export.spec.tasks.TaskSpec` calls it."""

    @property
    def name(self) -> str:
        """What the original code calls its module."""

    @property
    def input(self) -> str:
        """The input it reads."""

    def weights(self, hidden_size: int) -> Sequence[WeightSpec]:
        """Its weights, in the original code's names."""

    def used_columns(self, task: TaskSpec | None) -> dict[str, int]:
        """Name of a weight -> how many of its columns a step for a task reads, where that is not all."""

    def tensor(self, task: TaskSpec, batch_size: int) -> TensorSpec:
        """The input as a tensor of the step; raises ValueError where task and encoder do not fit."""

    def fact(self) -> str | None:
        """What it takes, in words; None where that is not worth a word."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with ``kind``."""


@dataclass(frozen=True)
class ScalarEncoder:
    """One number per row, through a linear layer."""

    kind: ClassVar[str] = "scalar"
    name: str
    input: str

    def weights(self, hidden_size: int) -> list[WeightSpec]:
        """See :class:`Encoder`."""
        return [
            WeightSpec(f"{self.name}.weight", (hidden_size, 1), Draw(1.0)),
            WeightSpec(f"{self.name}.bias", (hidden_size,), NEAR_ZERO),
        ]

    def used_columns(self, task: TaskSpec | None) -> dict[str, int]:
        """See :class:`Encoder`."""
        return {}

    def tensor(self, task: TaskSpec, batch_size: int) -> TensorSpec:
        """See :class:`Encoder`."""
        return TensorSpec(self.input, (batch_size,), "float32")

    def fact(self) -> str | None:
        """See :class:`Encoder`."""
        return None

    def to_json(self) -> dict[str, Any]:
        """See :class:`Encoder`."""
        return {"kind": self.kind, "name": self.name, "input": self.input}

    @staticmethod
    def from_json(fields: Fields) -> ScalarEncoder:
        """Read what :meth:`to_json` wrote; raises ValueError."""
        fields.only("kind", "name", "input")
        return ScalarEncoder(fields.text("name"), fields.text("input"))


@dataclass(frozen=True)
class StateEncoder:
    """Up to ``dim`` numbers, padded with zeros, through a linear layer."""

    kind: ClassVar[str] = "state"
    dim: int
    name: str = "embed_state"
    input: str = "observation"

    def __post_init__(self) -> None:
        """Raise ValueError for a size that no checkpoint has."""
        whole_number(self.dim, "dim", 1, MOST_OBSERVATION)

    def weights(self, hidden_size: int) -> list[WeightSpec]:
        """See :class:`Encoder`."""
        return [
            WeightSpec(f"{self.name}.weight", (hidden_size, self.dim), Draw(1 / math.sqrt(self.dim))),
            WeightSpec(f"{self.name}.bias", (hidden_size,), NEAR_ZERO),
        ]

    def used_columns(self, task: TaskSpec | None) -> dict[str, int]:
        """See :class:`Encoder`."""
        known = task is not None and task.observation_dim is not None
        return {f"{self.name}.weight": task.observation_dim} if known else {}  # type: ignore[dict-item, union-attr]

    def tensor(self, task: TaskSpec, batch_size: int) -> TensorSpec:
        """See :class:`Encoder`."""
        assert task.observation_dim is not None
        if task.observation_dim > self.dim:
            raise ValueError(
                f"observation_dim: the task has {task.observation_dim}, the model takes at most {self.dim}"
            )
        return TensorSpec(self.input, (batch_size, task.observation_dim), "float32")

    def fact(self) -> str | None:
        """See :class:`Encoder`."""
        return f"state ({self.dim})"

    def to_json(self) -> dict[str, Any]:
        """See :class:`Encoder`."""
        return {"kind": self.kind, "dim": self.dim}

    @staticmethod
    def from_json(fields: Fields) -> StateEncoder:
        """Read what :meth:`to_json` wrote; raises ValueError."""
        fields.only("kind", "dim")
        return StateEncoder(fields.integer("dim", 1, MOST_OBSERVATION))


@dataclass(frozen=True)
class ImageEncoder:
    """Images of uint8 pixels (channels, height, width), through the IMPALA CNN."""

    kind: ClassVar[str] = "image"
    shape: tuple[int, int, int]
    name: str = "embed_image"
    input: str = "observation"

    def __post_init__(self) -> None:
        """Raise ValueError for a size that no checkpoint has."""
        if len(self.shape) != len(IMAGE):
            raise ValueError(f"shape: expected [channels, height, width], got {list(self.shape)!r}")
        for axis, (value, (low, high)) in enumerate(zip(self.shape, IMAGE, strict=True)):
            whole_number(value, f"shape[{axis}]", low, high)

    @property
    def features(self) -> int:
        """Features after the CNN: each of its three poolings (3x3, stride 2, padding 1) halves, rounding up."""
        _, height, width = self.shape
        for _ in IMPALA_CHANNELS:
            height, width = (height + 1) // 2, (width + 1) // 2
        return IMPALA_CHANNELS[-1] * height * width

    def weights(self, hidden_size: int) -> list[WeightSpec]:
        """See :class:`Encoder`."""
        found: list[WeightSpec] = []
        channels_in = self.shape[0]
        for i, channels in enumerate(IMPALA_CHANNELS):
            prefix = f"{self.name}.cnn.{i}"

            def conv(name: str, inputs: int, adds: int = 1, prefix: str = prefix, outputs: int = channels) -> None:
                draw = Draw(1 / math.sqrt(9 * inputs * adds))
                found.append(WeightSpec(f"{prefix}.{name}.weight", (outputs, inputs, 3, 3), draw))
                found.append(WeightSpec(f"{prefix}.{name}.bias", (outputs,), NEAR_ZERO))

            conv("conv", channels_in)
            for residual in ("residual_0", "residual_1"):
                conv(f"{residual}.conv_0", channels)
                conv(f"{residual}.conv_1", channels, adds=2 * len(IMPALA_CHANNELS))
            channels_in = channels
        linear, features = f"{self.name}.linear.0", self.features
        matrix = "embed_observation.cnn.linear.0"
        draw = Draw(1 / math.sqrt(features))
        found.append(WeightSpec(f"{linear}.weight", (hidden_size, features), draw, matrix))
        found.append(WeightSpec(f"{linear}.bias", (hidden_size,), NEAR_ZERO))
        return found

    def used_columns(self, task: TaskSpec | None) -> dict[str, int]:
        """See :class:`Encoder`."""
        return {}

    def tensor(self, task: TaskSpec, batch_size: int) -> TensorSpec:
        """See :class:`Encoder`."""
        return TensorSpec(self.input, (batch_size, *self.shape), "uint8")

    def fact(self) -> str | None:
        """See :class:`Encoder`."""
        return f"image ({'x'.join(map(str, self.shape))})"

    def to_json(self) -> dict[str, Any]:
        """See :class:`Encoder`."""
        return {"kind": self.kind, "shape": list(self.shape)}

    @staticmethod
    def from_json(fields: Fields) -> ImageEncoder:
        """Read what :meth:`to_json` wrote; raises ValueError."""
        fields.only("kind", "shape")
        try:
            return ImageEncoder(tuple(fields.items("shape", len(IMAGE))))
        except ValueError as error:
            raise ValueError(f"{fields.where}.{error}") from None


KINDS: dict[str, Callable[[Fields], Encoder]] = {
    encoder.kind: encoder.from_json for encoder in (ScalarEncoder, StateEncoder, ImageEncoder)
}
"""What JSON may hold -> who reads it."""


def read_encoder(fields: Fields) -> Encoder:
    """Read what an encoder's ``to_json`` wrote; raises ValueError naming the field."""
    return KINDS[fields.text("kind", choices=tuple(KINDS))](fields)
