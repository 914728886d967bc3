"""Policies of stable-baselines3 and sb3-contrib: the zip that ``model.save`` writes.

Its `data` is JSON in which objects are pickles, of which spaces alone are read, by a reader that runs nothing;
`policy.pth` are the weights. The action is what ``model.predict(observation, deterministic=True)`` gives: clipped to
the space or scaled to it, as the trainer does it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lram_export.checkpoints.containers import POLICY, read_entry
from lram_export.checkpoints.torch_files import load_torch
from lram_export.errors import CheckpointError, UsageError
from lram_export.spec.json_fields import shown
from lram_export.step_module.policy import Field, StepPolicy
from lram_export.trainers import normalization
from lram_export.trainers.files import DATA, check_size
from lram_export.trainers.inert_pickle import Thing, read_numbers
from lram_export.trainers.networks import (
    ACTIVATIONS,
    Actor,
    Floats,
    Largest,
    NatureEncoder,
    Pixels,
    Scaled,
    Within,
    linear,
    perceptron,
    policy_of,
)
from lram_export.trainers.weights import NamedWeights, expect_inputs

KNOWN = "PPO, A2C, SAC, TD3, DDPG, DQN, RecurrentPPO and TQC with their MLPs, LSTMs and image encoder"
IGNORED = (
    *("net_arch", "activation_fn", "ortho_init", "log_std_init", "full_std", "use_expln", "squash_output", "use_sde"),
    *("features_extractor_kwargs", "share_features_extractor", "optimizer_class", "optimizer_kwargs", "clip_mean"),
    *("n_critics", "n_quantiles", "lstm_hidden_size", "n_lstm_layers", "shared_lstm", "enable_critic_lstm"),
)
"""Settings of a policy that are in the weights' shapes, do not change the deterministic action, or are read below."""
EXTRACTORS = tuple(
    f"<class 'stable_baselines3.common.torch_layers.{name}'>" for name in ("FlattenExtractor", "NatureCNN")
)
ACTIVATION = re.compile(r"<class 'torch\.nn\.modules\.(?:activation|linear)\.(\w+)'>")
ON_POLICY = ("stable_baselines3.common.policies", "sb3_contrib.common.recurrent.policies")
"""Of these a zip tells whether they were trained on normalized observations."""


@dataclass(frozen=True)
class _Kind:
    """What the parts of a kind of policy are called.

    ``hidden`` layers are all activated, and ``out`` is the last one; where that is None it is the last of ``hidden``.
    ``recurrent``: how the names of the LSTM's weights begin. ``scaled``: its action is a hyperbolic tangent, scaled to
    the space.
    """

    activation: str
    extractor: str
    hidden: str
    out: str | None
    recurrent: str = "-"
    scaled: bool = False


KINDS = {
    "stable_baselines3.common.policies": _Kind("tanh", "features_extractor", "mlp_extractor.policy_net", "action_net"),
    "stable_baselines3.sac.policies": _Kind(
        "relu", "actor.features_extractor", "actor.latent_pi", "actor.mu", scaled=True
    ),
    "stable_baselines3.td3.policies": _Kind("relu", "actor.features_extractor", "actor.mu", None, scaled=True),
    "stable_baselines3.dqn.policies": _Kind("relu", "q_net.features_extractor", "q_net.q_net", None),
    "sb3_contrib.common.recurrent.policies": _Kind(
        "tanh", "features_extractor", "mlp_extractor.policy_net", "action_net", recurrent="lstm_actor."
    ),
    "sb3_contrib.tqc.policies": _Kind("relu", "actor.features_extractor", "actor.latent_pi", "actor.mu", scaled=True),
}
"""Module of the policy's class -> what its parts are called."""
CRITICS = (
    *("value_net", "mlp_extractor.value_net", "critic", "lstm_critic", "q_net_target", "actor_target", "log_std"),
    *("actor.log_std", "pi_features_extractor", "vf_features_extractor"),
)
"""What acting does not need."""


def read(path: Path, statistics: Path | None) -> tuple[StepPolicy, list[str]]:
    """The policy of a zip, and what was assumed.

    Args:
        path: the zip.
        statistics: of normalized observations; None: those beside the zip, if there are any.

    Raises:
        CheckpointError: it is damaged; or a policy, a space or a setting that is not supported.
        UsageError: there are no such statistics.
    """
    data = _data(path)
    module = data.get("policy_class", {})
    module = module.get("__module__") if isinstance(module, dict) else None
    kind = KINDS.get(str(module))
    if kind is None:
        raise CheckpointError(f"{path}: policy_class: {shown(module)} is not supported; {KNOWN} are")
    content = load_torch(BytesIO(read_entry(path, POLICY)), f"{path}: {POLICY}")
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: {POLICY}: expected named weights, got {type(content).__name__}")
    weights = NamedWeights(content, f"{path}: {POLICY}")
    settings = _settings(data, path)
    if kind.scaled and data.get("use_sde"):
        raise CheckpointError(f"{path}: use_sde: not supported for a policy of {module}")
    observation, first = _observation(data, path)
    before, width = _before(weights, kind, observation, first, path)
    unknown = module in ON_POLICY and data.get("_last_original_obs") is not None
    normalizer, assumed = _normalizer(path, statistics, observation, unknown)
    recurrent = weights.recurrent(kind.recurrent)
    if recurrent:
        expect_inputs(weights, kind.recurrent, recurrent[0].inputs, width)
        width = recurrent[-1].width
    behind, outputs = _behind(weights, kind, _activation(settings, kind, path), width)
    decide = _decision(data, kind, settings, outputs, path)
    weights.drop(*CRITICS)
    weights.expect_no_more(KNOWN)
    actor = Actor([*normalizer, *before], recurrent, behind, decide)
    return policy_of(actor, {"observation": observation}, outputs), assumed


def _data(path: Path) -> dict[str, Any]:
    check_size(path, DATA)
    try:
        found = json.loads(read_entry(path, DATA))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {DATA}: not readable JSON ({error})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: {DATA}: expected the settings of a model")
    return found


def _settings(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The policy's settings; raises CheckpointError for one that changes acting and is not supported."""
    found = data.get("policy_kwargs") or {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: policy_kwargs: expected settings by name")
    settings = {name: value for name, value in found.items() if name not in (":type:", ":serialized:")}
    for name, value in settings.items():
        known = name in IGNORED
        if name == "features_extractor_class":
            known = str(value) in EXTRACTORS
        if name == "normalize_images":
            known = value in (True, "True")
        if name == "lstm_kwargs":
            known = value in (None, "None", {}, "{}")
        if not known:
            raise CheckpointError(f"{path}: policy_kwargs: {shown(name)}: {shown(str(value))} is not supported")
    return settings


def _space(data: Mapping[str, Any], name: str, path: Path) -> tuple[str, dict[str, Any]]:
    """Kind and contents of a space, as its pickle says."""
    entry = data.get(name)
    try:
        raw = base64.b64decode(entry[":serialized:"], validate=True)  # type: ignore[index]
    except (TypeError, KeyError, binascii.Error, ValueError):
        raise CheckpointError(f"{path}: {DATA}: {name}: expected a space, got {shown(str(entry)[:40])}") from None
    found = read_numbers(raw, f"{path}: {DATA}: {name}")
    if not isinstance(found, Thing):
        raise CheckpointError(f"{path}: {DATA}: {name}: expected a space, got {type(found).__name__}")
    return found.kind.rpartition(".")[2], found.state


def _box(state: Mapping[str, Any], name: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    low, high = state.get("low"), state.get("high")
    if (
        not isinstance(low, np.ndarray)
        or not isinstance(high, np.ndarray)
        or low.shape != high.shape
        or low.ndim == 0
        or bool(np.isnan(low).any() or np.isnan(high).any())
    ):
        raise CheckpointError(f"{path}: {DATA}: {name}: expected a Box with limits of one shape")
    return low, high


def _observation(data: Mapping[str, Any], path: Path) -> tuple[Field, nn.Module]:
    """The observation, and what makes numbers of it: an image's are divided by 255, as by the trainer."""
    kind, state = _space(data, "observation_space", path)
    if kind != "Box":
        raise CheckpointError(f"{path}: observation_space: {shown(kind)} is not supported; Box is")
    low, high = _box(state, "observation_space", path)
    whole = low.dtype == np.uint8
    image = whole and low.ndim == 3 and bool((low == 0).all() and (high == 255).all())
    return Field(low.shape, "uint8" if whole else "float32"), Pixels() if image else Floats()


def _before(
    weights: NamedWeights, kind: _Kind, observation: Field, first: nn.Module, path: Path
) -> tuple[list[nn.Module], int]:
    """What encodes the observation, and how many features it leaves."""
    name = f"{kind.extractor}.cnn"
    if not weights.has(f"{name}.0.weight"):
        return [first, nn.Flatten()], int(np.prod(observation.shape))
    if not isinstance(first, Pixels):
        raise CheckpointError(f"{path}: an image encoder for observations of shape {observation.shape}")
    convolutions = [weights.layer(f"{name}.{number}", 4) for number in (0, 2, 4)]
    of_features = weights.layer(f"{kind.extractor}.linear.0")
    return [first, NatureEncoder(convolutions, of_features)], of_features[0].shape[0]


def _normalizer(
    path: Path, statistics: Path | None, observation: Field, unknown: bool
) -> tuple[list[nn.Module], list[str]]:
    """What normalizes observations, and what was assumed; ``unknown``: they were normalized in training."""
    found, assumed = statistics, []
    if found is None:
        found = normalization.beside(path)
        if found is not None:
            name = found.relative_to(path.absolute().parent)
            assumed.append(f"observations are normalized as {name} beside the policy says")
        elif unknown:
            raise UsageError(
                f"{path}: it was trained with VecNormalize, whose statistics are not beside it: --normalization FILE "
                f"says where they are, --normalization none that its observations were not normalized"
            )
    if found is None or found == normalization.NONE:
        return [], []
    normalizer = normalization.read_normalization(found, tuple(observation.shape))
    return [] if normalizer is None else [normalizer], assumed


def _activation(settings: Mapping[str, Any], kind: _Kind, path: Path) -> str:
    said = settings.get("activation_fn")
    if said is None:
        return kind.activation
    match = ACTIVATION.fullmatch(str(said))
    name = match[1].lower() if match is not None else ""
    if name not in ACTIVATIONS:
        raise CheckpointError(f"{path}: policy_kwargs: activation_fn: {shown(str(said))} is not supported")
    return name


def _behind(weights: NamedWeights, kind: _Kind, activation: str, width: int) -> tuple[nn.Module, int]:
    """The perceptron, and how many numbers it leaves."""
    if kind.out is None:
        layers = weights.layers(kind.hidden)
        expect_inputs(weights, kind.hidden, layers[0][0].shape[1], width)
        return perceptron(layers, activation), layers[-1][0].shape[0]
    hidden = weights.layers(kind.hidden) if weights.has(f"{kind.hidden}.0.weight") else []
    for weight, _ in hidden[:1]:
        expect_inputs(weights, kind.hidden, weight.shape[1], width)
    out = weights.layer(kind.out)
    expect_inputs(weights, kind.out, out[0].shape[1], hidden[-1][0].shape[0] if hidden else width)
    return nn.Sequential(*perceptron(hidden, activation, last=True), linear(*out)), out[0].shape[0]


def _decision(data: Mapping[str, Any], kind: _Kind, settings: Mapping[str, Any], outputs: int, path: Path) -> nn.Module:
    space, state = _space(data, "action_space", path)
    if space == "Discrete":
        if state.get("start", 0) != 0:
            raise CheckpointError(f"{path}: action_space: actions that do not begin with 0 are not supported")
        if state.get("n") != outputs:
            raise CheckpointError(
                f"{path}: action_space: {shown(str(state.get('n')))} actions do not fit the network's {outputs} outputs"
            )
        return Largest()
    if space != "Box":
        raise CheckpointError(f"{path}: action_space: {shown(space)} is not supported; Box and Discrete are")
    low, high = _box(state, "action_space", path)
    if low.ndim != 1:
        raise CheckpointError(f"{path}: action_space: a Box of shape {low.shape} is not supported; one dimension is")
    if len(low) != outputs:
        raise CheckpointError(f"{path}: action_space: shape {low.shape} does not fit the network's {outputs} outputs")
    limits = (torch.from_numpy(values.astype(np.float32)) for values in (low, high))
    squashed = kind.scaled or settings.get("squash_output") in (True, "True")
    return Scaled(*limits) if squashed else Within(*limits)
