"""The architecture of an LRAM, as plain numbers: what the weights must look like.

Free of torch, so that a robot can read it from a bundle's manifest.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from lram_export.backbones.xlstm.config import mlstm_shapes, slstm_shapes
from lram_export.spec.bounds import IMAGE, MODEL
from lram_export.spec.json_fields import Fields, whole_number

FFN_ACTIVATIONS = ("gelu", "relu", "relu^2", "sigmoid", "swish", "selu")
"""Activations of the gated feed-forward that a model can have."""
IMPALA_CHANNELS = (16, 32, 32)
"""Channels of the three blocks of the IMPALA CNN (arXiv 1802.01561), each of which halves the image."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of one LRAM.

    ``inner_size`` is the width D of an mLSTM block (2 * hidden_size in the published models), so its head
    width is D / num_heads. ``slstm_at`` lists the blocks that are sLSTM blocks; each is followed by a
    gated feed-forward of width ``ffn_size``. ``state_dim`` and ``image_shape`` are None where the
    checkpoint has no such encoder. The head has ``act_dim`` * (``discrete_actions`` + ``action_channels``)
    rows: tokens below ``discrete_actions`` are discrete actions, the others bins of [-1, 1].
    """

    hidden_size: int
    num_blocks: int
    num_heads: int
    inner_size: int
    slstm_at: tuple[int, ...] = ()
    slstm_num_heads: int = 4
    ffn_size: int = 0
    ffn_activation: str = "gelu"
    conv_kernel_size: int = 4
    qkv_block_size: int = 4
    state_dim: int | None = 204
    image_shape: tuple[int, int, int] | None = (3, 64, 64)
    act_dim: int = 8
    action_channels: int = 256
    discrete_actions: int = 18

    def __post_init__(self) -> None:
        """Check every size, and that they fit together; raises ValueError naming the field."""
        for name, (low, high) in MODEL.items():
            value = getattr(self, name)
            if not (name == "state_dim" and value is None):
                whole_number(value, name, low, high)
        if self.image_shape is not None:
            for axis, (value, (low, high)) in enumerate(zip(self.image_shape, IMAGE, strict=True)):
                whole_number(value, f"image_shape[{axis}]", low, high)
        if self.ffn_activation not in FFN_ACTIVATIONS:
            raise ValueError(
                f"ffn_activation: expected one of {', '.join(FFN_ACTIVATIONS)}, got {self.ffn_activation!r}"
            )
        if self.inner_size % self.num_heads:
            raise ValueError(f"num_heads: {self.num_heads} does not divide the inner size {self.inner_size}")
        if self.inner_size % self.qkv_block_size:
            raise ValueError(f"qkv_block_size: {self.qkv_block_size} does not divide the inner size {self.inner_size}")
        for place, block in enumerate(self.slstm_at):
            whole_number(block, f"slstm_at[{place}]", -MODEL["num_blocks"][1], MODEL["num_blocks"][1])
        outside = [i for i in self.slstm_at if not 0 <= i < self.num_blocks]
        if outside or len(set(self.slstm_at)) != len(self.slstm_at):
            raise ValueError(
                f"slstm_at: expected distinct blocks in 0..{self.num_blocks - 1}, got {list(self.slstm_at)}"
            )
        if self.slstm_at and self.hidden_size % self.slstm_num_heads:
            raise ValueError(
                f"slstm_num_heads: {self.slstm_num_heads} does not divide the hidden size {self.hidden_size}"
            )
        if self.slstm_at and self.ffn_size < 1:
            raise ValueError("ffn_size: expected a positive number where there are sLSTM blocks")
        if self.state_dim is None and self.image_shape is None:
            raise ValueError("state_dim, image_shape: expected at least one observation encoder")

    @property
    def num_actions(self) -> int:
        """Number of action tokens per action dimension (274 in the published models)."""
        return self.action_channels + self.discrete_actions

    @property
    def head_dim(self) -> int:
        """Width of one mLSTM head: C is head_dim x head_dim."""
        return self.inner_size // self.num_heads

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of :meth:`from_json`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @property
    def parameters(self) -> int:
        """Weights of a checkpoint of this architecture."""
        return sum(math.prod(shape) for shape in expected_shapes(self).values())

    @staticmethod
    def from_json(data: object) -> ModelConfig:
        """Read what :meth:`to_json` wrote; raises ValueError naming the field that is wrong."""
        fields = Fields.of(data, "model")
        fields.only(*(f.name for f in dataclasses.fields(ModelConfig)))
        values = dict(fields.data)
        values["slstm_at"] = tuple(fields.items("slstm_at", MODEL["num_blocks"][1]))
        if values["image_shape"] is not None:
            shape = fields.items("image_shape", len(IMAGE))
            if len(shape) != len(IMAGE):
                raise ValueError(f"model.image_shape: expected [channels, height, width], got {shape!r}")
            values["image_shape"] = tuple(shape)
        try:
            return ModelConfig(**values)
        except ValueError as error:
            raise ValueError(f"model.{error}") from None


def image_features(image_shape: tuple[int, int, int]) -> int:
    """Features after the IMPALA CNN: each of its three poolings (3x3, stride 2, padding 1) halves, rounding up."""
    _, height, width = image_shape
    for _ in IMPALA_CHANNELS:
        height, width = (height + 1) // 2, (width + 1) // 2
    return IMPALA_CHANNELS[-1] * height * width


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight an LRAM of this config has, in the original code's names.

    sLSTM recurrent kernels are listed in the `vanilla` layout (heads, 4 * head_dim, head_dim), to which
    :mod:`lram_export.checkpoints.checkpoint` converts.
    """
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "embed_return.weight": (hidden, 1),
        "embed_return.bias": (hidden,),
        "embed_rewards.weight": (hidden, 1),
        "embed_rewards.bias": (hidden,),
        "embed_ln.weight": (hidden,),
        "embed_ln.bias": (hidden,),
        "action_net.0.weight": (config.act_dim * config.num_actions, hidden),
        "action_net.0.bias": (config.act_dim * config.num_actions,),
        "encoder.layers.post_blocks_norm.weight": (hidden,),
    }
    if config.state_dim is not None:
        shapes["embed_state.weight"] = (hidden, config.state_dim)
        shapes["embed_state.bias"] = (hidden,)
    if config.image_shape is not None:
        shapes |= _image_encoder_shapes(config.image_shape, hidden)
    for block in range(config.num_blocks):
        shapes |= slstm_shapes(config, block) if block in config.slstm_at else mlstm_shapes(config, block)
    return shapes


def weight_count(config: ModelConfig) -> int:
    """How many weights a model has."""
    return sum(math.prod(shape) for shape in expected_shapes(config).values())


def _image_encoder_shapes(image_shape: tuple[int, int, int], hidden: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    channels_in = image_shape[0]
    for i, channels in enumerate(IMPALA_CHANNELS):
        prefix = f"embed_image.cnn.{i}"
        shapes[f"{prefix}.conv.weight"] = (channels, channels_in, 3, 3)
        shapes[f"{prefix}.conv.bias"] = (channels,)
        for residual in ("residual_0", "residual_1"):
            for conv in ("conv_0", "conv_1"):
                shapes[f"{prefix}.{residual}.{conv}.weight"] = (channels, channels, 3, 3)
                shapes[f"{prefix}.{residual}.{conv}.bias"] = (channels,)
        channels_in = channels
    shapes["embed_image.linear.0.weight"] = (hidden, image_features(image_shape))
    shapes["embed_image.linear.0.bias"] = (hidden,)
    return shapes
