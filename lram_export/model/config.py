"""The architecture of a policy network, as plain numbers: tokens, encoders, a backbone, a head. Free of torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lram_export.backbones.protocol import BackboneConfig, Draw, WeightSpec
from lram_export.backbones.registry import backbone_module, read_backbone
from lram_export.errors import BundleError
from lram_export.model.encoders import Encoder, ImageEncoder, ScalarEncoder, StateEncoder, read_encoder
from lram_export.model.heads import Head, read_head
from lram_export.spec.cost import Widths
from lram_export.spec.interface import Interface
from lram_export.spec.json_fields import Fields
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tokens import LRAM, TokenLayout

MOST_ENCODERS = 16
LRAM_SCALARS = (ScalarEncoder("embed_return", "return_to_go"), ScalarEncoder("embed_rewards", "reward"))


@dataclass(frozen=True)
class ModelConfig:
    """One policy network.

    Attributes:
        backbone: its sizes.
        head: what the action is chosen from.
        encoders: of every input that a token embeds one, of the observation as many as the checkpoint has.
        tokens: what a step embeds, in order.
    """

    backbone: BackboneConfig
    head: Head
    encoders: tuple[Encoder, ...]
    tokens: TokenLayout = LRAM

    def __post_init__(self) -> None:
        """Raise ValueError unless every token has an encoder, and none but the observation has more."""
        for name in self.tokens.inputs:
            found = [encoder for encoder in self.encoders if encoder.input == name]
            if not found:
                raise ValueError(f"encoders: expected at least one for the input '{name}'")
            if len({encoder.kind for encoder in found}) != len(found):
                raise ValueError(f"encoders: expected different ones for the input '{name}'")

    def encoder(self, kind: str) -> Encoder | None:
        """The encoder of the observation of a kind, `state` or `image`; None where the model has none."""
        return next((e for e in self.encoders if e.input == "observation" and e.kind == kind), None)

    def encoders_of(self, task: TaskSpec | None) -> tuple[Encoder, ...]:
        """The encoders that a step for a task reads, in the order of the tokens.

        Without a task: of an observation that may come in two forms the state.

        Raises:
            ValueError: the model has no encoder for the task's observation.
        """
        found = []
        for name in self.tokens.inputs:
            candidates = [encoder for encoder in self.encoders if encoder.input == name]
            if name == "observation" and task is not None:
                candidates = [encoder for encoder in candidates if encoder.kind == task.observation]
                if not candidates:
                    wanted = "images" if task.observation == "image" else "a state"
                    raise ValueError(
                        f"observation: the task needs {wanted}, but the checkpoint has no {task.observation} encoder"
                    )
            found.append(candidates[0])
        return tuple(found)

    def weights(self) -> list[WeightSpec]:
        """Every weight of a checkpoint, in the original code's names."""
        hidden = self.backbone.hidden_size
        norm = [
            WeightSpec("embed_ln.weight", (hidden,), Draw(0.1, mean=1.0)),
            WeightSpec("embed_ln.bias", (hidden,), Draw(0.1)),
        ]
        encoders = [weight for encoder in self.encoders for weight in encoder.weights(hidden)]
        return [*encoders, *norm, *self.backbone.weights(), *self.head.weights(hidden)]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight of a checkpoint."""
        return {weight.name: weight.shape for weight in self.weights()}

    @property
    def parameters(self) -> int:
        """Weights of a checkpoint of this architecture."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def used_weights(self, task: TaskSpec | None) -> list[WeightSpec]:
        """The weights a step for a task reads: one encoder of the observation, of it and of the head only what the
        task has. Without a task: all of the encoder, and of the head."""
        used = self.encoders_of(task)
        unused = {w.name for e in self.encoders if e not in used for w in e.weights(1)}
        columns = {name: count for encoder in used for name, count in encoder.used_columns(task).items()}
        rows = None if task is None else self.head.used_rows(task)
        head = {weight.name for weight in self.head.weights(self.backbone.hidden_size)}
        found = []
        for weight in self.weights():
            shape = weight.shape
            if weight.name in unused:
                continue
            if weight.name in columns:
                shape = (shape[0], columns[weight.name])
            if weight.name in head and rows is not None:
                shape = (rows, *shape[1:])
            found.append(dataclasses.replace(weight, shape=shape))
        return found

    @property
    def contexts(self) -> tuple[str, ...]:
        """The ways to act that the backbone has, its default first; none where it acts in one way only."""
        return tuple(getattr(backbone_module(self.backbone.kind, "config"), "CONTEXTS", ()))

    @property
    def context(self) -> str | None:
        """The one of :attr:`contexts` in which it acts; None where there are none."""
        sizes: Any = self.backbone
        return str(sizes.context) if self.contexts else None

    def in_context(self, context: str | None) -> ModelConfig:
        """The same policy acting in a way of :attr:`contexts`; None: as it is.

        Raises:
            ValueError: there is no such way.
        """
        if context is None:
            return self
        if not self.contexts:
            raise ValueError(f"a model of backbone '{self.backbone.kind}' acts in one way only")
        if context not in self.contexts:
            raise ValueError(f"expected one of {', '.join(self.contexts)}, got '{context}'")
        module = backbone_module(self.backbone.kind, "config")
        backbone, tokens = module.in_context(self.backbone, self.tokens, context)
        return dataclasses.replace(self, backbone=backbone, tokens=tokens)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of :meth:`from_json`."""
        return {
            "tokens": self.tokens.to_json(),
            "encoders": [encoder.to_json() for encoder in self.encoders],
            "backbone": self.backbone.to_json(),
            "head": self.head.to_json(),
        }

    @staticmethod
    def from_json(data: object) -> ModelConfig:
        """Read what :meth:`to_json` wrote; raises ValueError naming the field that is wrong."""
        fields = Fields.of(data, "model")
        if "backbone" not in fields.data:
            fields = Fields(of_flat_sizes(fields), fields.where)
        fields.only("tokens", "encoders", "backbone", "head")
        encoders = [
            read_encoder(Fields.of(entry, f"{fields.path('encoders')}[{i}]"))
            for i, entry in enumerate(fields.items("encoders", MOST_ENCODERS))
        ]
        backbone, head = read_backbone(fields.fields("backbone")), read_head(fields.fields("head"))
        try:
            return ModelConfig(backbone, head, tuple(encoders), TokenLayout.from_json(fields.fields("tokens")))
        except ValueError as error:
            raise ValueError(f"{fields.where}.{error}") from None


def read_model(model: Mapping[str, Any], path: Path) -> ModelConfig:
    """The architecture that a bundle's manifest holds; ``path`` is the bundle, for messages.

    Raises:
        BundleError: it is damaged, or of a backbone that this version does not know.
    """
    try:
        return ModelConfig.from_json(dict(model))
    except ValueError as error:
        raise BundleError(f"{path / 'manifest.json'}: {error}") from None


def bin_width(model: Mapping[str, Any], task: TaskSpec | None, interface: Interface, path: Path) -> Widths:
    """Distance of two neighbouring action values of what a manifest describes; 0 where any two are apart. Of actions
    that are scaled one for each value, (action_dim,), or one for all.

    Raises:
        BundleError: see :func:`read_model`.
    """
    return 0.0 if task is None else scaled_width(read_model(model, path).head.bin_width(task), interface)


def scaled_width(width: float, interface: Interface) -> Widths:
    """A distance of action values as an interface scales it."""
    of = interface.action.get("action")
    return width if of is None or of.scaling is None else width * np.abs(np.asarray(of.scaling.scale))


def lram_encoders(state_dim: int | None, image_shape: tuple[int, int, int] | None) -> tuple[Encoder, ...]:
    """The encoders of an LRAM; None where the checkpoint has no such encoder.

    Raises:
        ValueError: it has none for an observation, or one of a size that no checkpoint has.
    """
    if state_dim is None and image_shape is None:
        raise ValueError("state_dim, image_shape: expected at least one observation encoder")
    found: list[Encoder] = [*LRAM_SCALARS]
    try:
        if state_dim is not None:
            found.append(StateEncoder(state_dim))
    except ValueError as error:
        raise ValueError(f"state_{error}") from None
    try:
        if image_shape is not None:
            found.append(ImageEncoder(image_shape))
    except ValueError as error:
        raise ValueError(f"image_{error}") from None
    return tuple(found)


_FLAT_BACKBONE = (
    *("hidden_size", "num_blocks", "num_heads", "inner_size", "slstm_at", "slstm_num_heads", "ffn_size"),
    *("ffn_activation", "conv_kernel_size", "qkv_block_size"),
)
_FLAT_HEAD = ("act_dim", "action_channels", "discrete_actions")


def of_flat_sizes(fields: Fields) -> dict[str, Any]:
    """What files of earlier versions say, all sizes side by side, as :meth:`ModelConfig.to_json` says it now."""
    fields.only(*_FLAT_BACKBONE, *_FLAT_HEAD, "state_dim", "image_shape")
    data: Mapping[str, Any] = fields.data
    encoders = [encoder.to_json() for encoder in LRAM_SCALARS]
    if data["state_dim"] is not None:
        encoders.append({"kind": StateEncoder.kind, "dim": data["state_dim"]})
    if data["image_shape"] is not None:
        encoders.append({"kind": ImageEncoder.kind, "shape": data["image_shape"]})
    return {
        "tokens": LRAM.to_json(),
        "encoders": encoders,
        "backbone": {"kind": "xlstm", **{name: data[name] for name in _FLAT_BACKBONE}},
        "head": {"kind": "action_bins", **{name: data[name] for name in _FLAT_HEAD}},
    }
