"""Sizes of a model from its weights alone."""

from __future__ import annotations

from types import ModuleType

from lram_export.backbones.protocol import Weights
from lram_export.backbones.reading import FoundWeights
from lram_export.backbones.registry import BACKBONES, backbone_module
from lram_export.checkpoints.checkpoint import Hints
from lram_export.errors import CheckpointError, UsageError
from lram_export.model.config import ModelConfig, lram_encoders
from lram_export.model.encoders import IMPALA_CHANNELS
from lram_export.model.heads import ActionBins

PUBLISHED_NUM_ACTIONS, PUBLISHED_DISCRETE_ACTIONS = 274, 18
PUBLISHED_IMAGE_SIZE = 64


def infer_config(
    weights: Weights, where: str, hints: Hints, num_actions: int | None
) -> tuple[ModelConfig, tuple[str, ...]]:
    """Infer every size from the weights alone.

    Args:
        weights: named weights without prefixes, as the training code saved them.
        where: the file and what it is, for messages.
        hints: sizes given by the user.
        num_actions: action tokens per dimension where the action embedding shows them.

    Returns:
        The config, and what was taken from the published models because weights cannot show it.

    Raises:
        CheckpointError: a weight that every LRAM has is missing.
        UsageError: something that cannot be inferred, naming the option that says it.
    """
    assumptions = ["tokens (reward, state, return-to-go), no time embeddings, as in the published models"]
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    found = FoundWeights(where, shapes, hints.of_backbone, assumptions)
    found.shape("embed_ln.weight")
    original = _original(weights, where)
    for name in found.given:
        if name not in original.HINTS:
            raise UsageError(f"--{name.replace('_', '-')}: the weights of {where} show it; leave it out")
    try:
        backbone = original.infer(found)
        sizes = _infer_actions(found, hints, num_actions)
        encoders = lram_encoders(*_infer_observations(found, hints))
        config = ModelConfig(backbone, ActionBins(**sizes), encoders)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from None
    return config, tuple(assumptions)


def _original(weights: Weights, where: str) -> ModuleType:
    """The backbone that knows these names; raises CheckpointError where none does."""
    for kind in BACKBONES:
        original = backbone_module(kind, "original")
        if original.recognizes(weights):
            return original
    raise CheckpointError(
        f"{where}: no weights of a backbone that this lram-export knows ({', '.join(BACKBONES)}); is this an LRAM "
        f"checkpoint?"
    )


def _infer_actions(found: FoundWeights, hints: Hints, num_actions: int | None) -> dict[str, int]:
    rows = found.shape("action_net.0.weight")[0]
    if hints.act_dim is not None:
        num_actions = rows // hints.act_dim
    if num_actions is None:
        raise UsageError(
            f"--act-dim: {found.where}: the weights do not show how the {rows} rows of the head divide into action "
            f"dimensions; add --act-dim (8 in the published models), or --config"
        )
    if num_actions < 1 or rows % num_actions:
        raise UsageError(f"--act-dim: {found.where}: {rows} rows of the head do not divide by it")
    discrete = hints.discrete_actions
    if discrete is None:
        if num_actions != PUBLISHED_NUM_ACTIONS:
            raise UsageError(
                f"--discrete-actions: {found.where}: the weights do not show how many of the {num_actions} action "
                f"tokens are discrete actions; add --discrete-actions (18 in the published models), or --config"
            )
        discrete = PUBLISHED_DISCRETE_ACTIONS
        bins = num_actions - discrete
        found.assumptions.append(f"{discrete} discrete actions and {bins} bins, as in the published models")
    if not 0 <= discrete < num_actions:
        raise UsageError(f"--discrete-actions: expected 0 to {num_actions - 1}, got {discrete}")
    return {
        "act_dim": rows // num_actions,
        "action_channels": num_actions - discrete,
        "discrete_actions": discrete,
    }


def _infer_observations(found: FoundWeights, hints: Hints) -> tuple[int | None, tuple[int, int, int] | None]:
    """Numbers of an observation, shape of an image; None: the policy takes none."""
    state_dim = found.shape("embed_state.weight")[-1] if "embed_state.weight" in found else None
    if "embed_image.linear.0.weight" not in found:
        return state_dim, None
    channels, features = found.shape("embed_image.cnn.0.conv.weight")[1], found.shape("embed_image.linear.0.weight")[1]
    return state_dim, _infer_image_shape(channels, features, hints, found)


def _infer_image_shape(channels: int, features: int, hints: Hints, found: FoundWeights) -> tuple[int, int, int]:
    if hints.image_shape is not None:
        return hints.image_shape
    published = PUBLISHED_IMAGE_SIZE
    if features == IMPALA_CHANNELS[-1] * (published // 8) ** 2:
        found.assumptions.append(f"images of {published}x{published}, as in the published models")
        return (channels, published, published)
    raise UsageError(
        f"--image-shape: {found.where}: the weights do not show the size of the images ({features} features could be "
        f"several); add --image-shape CHANNELS,HEIGHT,WIDTH, or --config"
    )
