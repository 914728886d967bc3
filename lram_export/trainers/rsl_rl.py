"""Actors of rsl_rl, as Isaac Lab and mjlab train them: `model_<iteration>.pt`.

A file has the weights and not what activates them: that is in the configuration of the run, `params/agent.yaml` beside
the file. Read are files of rsl_rl 5 (``actor_state_dict``, ``student_state_dict``) and of those before
(``model_state_dict``): perceptrons and LSTMs and GRUs before them, with or without empirical normalization. The action
is what ``get_inference_policy`` gives: the mean, neither scaled nor clipped, which is the environment's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lram_export.checkpoints.containers import Container
from lram_export.errors import CheckpointError, UsageError
from lram_export.spec.json_fields import shown
from lram_export.step_module.policy import StepPolicy
from lram_export.trainers.networks import ACTIVATIONS, Actor, FirstHalf, Mean, Normalizer, perceptron, policy_of
from lram_export.trainers.weights import NamedWeights, expect_inputs

RUN_CONFIG = Path("params") / "agent.yaml"
NORMALIZATION_EPSILON = 1e-2
"""What ``EmpiricalNormalization`` adds to the deviation."""
OTHER_NAMES = {"crelu": "celu", "lrelu": "leakyrelu", "swish": "silu"}
"""What rsl_rl calls activations -> what torch does; its `crelu` is a CELU."""
MEANS = {"GaussianDistribution": Mean, "HeteroscedasticGaussianDistribution": FirstHalf, None: Mean}
"""Distribution -> how its deterministic action comes of what the network says."""
KNOWN = "MLP, LSTM and GRU with empirical normalization"
MODELS = ("MLPModel", "RNNModel", "ActorCritic", "ActorCriticRecurrent", "StudentTeacher", "StudentTeacherRecurrent")
"""Classes of networks that are built of what is read here."""
SECTIONS = {"actor_state_dict": "actor", "student_state_dict": "student"}
"""Key of a file -> where its run's configuration has the network's settings; older ones have them in `policy`."""


@dataclass(frozen=True)
class _Parts:
    """What the parts of an actor are called in a version of rsl_rl, and in which section of the configuration its
    settings are. ``deterministic``: it has no distribution."""

    perceptron: str
    recurrent: str
    normalizer: str
    section: str
    deterministic: bool = False


def read(container: Container, config_file: Path | None, activation: str | None) -> tuple[StepPolicy, list[str]]:
    """The actor of a file, or the student of a distillation; and what was assumed.

    Raises:
        UsageError: the activation is not known: there is no configuration, and none was given.
        CheckpointError: the file is not an actor that is known here; a setting of the run that changes acting and is
            not supported.
    """
    content = container.content if isinstance(container.content, dict) else {}
    config, found_at = _config(container.path, config_file)
    weights, parts, normalization = _actor(content, container.where)
    settings = _settings(config, parts.section, str(found_at))
    assumed = []
    chosen = _activation(activation, settings, container.path, found_at)
    before = [] if normalization is None else [normalization]
    recurrent = weights.recurrent(parts.recurrent)
    layers = weights.layers(parts.perceptron)
    inputs = recurrent[0].inputs if recurrent else layers[0][0].shape[1]
    if normalization is not None:
        expect_inputs(weights, parts.normalizer, inputs, normalization.mean.shape[-1])
    if recurrent:
        expect_inputs(weights, f"{parts.perceptron}.0.weight", recurrent[-1].width, layers[0][0].shape[1])
    decide = _decision(settings, weights, parts)
    if normalization is None and settings.get("normalized"):
        raise CheckpointError(f"{found_at}: says that observations are normalized, but {container.path} has no mean")
    if config.get("clip_actions") is not None:
        assumed.append(
            f"clip_actions ({config['clip_actions']}) is the environment's: the policy's actions are not clipped"
        )
    weights.drop("critic", "teacher", "memory_c", "memory_t", "std", "log_std", "distribution.", "critic_obs")
    weights.expect_no_more(KNOWN)
    outputs = layers[-1][0].shape[0]
    actor = Actor(before, recurrent, perceptron(layers, chosen), decide)
    return policy_of(actor, inputs, outputs // 2 if isinstance(decide, FirstHalf) else outputs), assumed


def _actor(content: Mapping[str, Any], where: str) -> tuple[NamedWeights, _Parts, Normalizer | None]:
    for key, section in SECTIONS.items():
        if isinstance(content.get(key), dict):
            weights = NamedWeights(content[key], f"{where}: {key}")
            parts = _Parts("mlp", "rnn.rnn.", "obs_normalizer", section)
            return weights, parts, _normalizer(weights, f"{parts.normalizer}.")
    found = content.get("model_state_dict")
    if not isinstance(found, dict):
        raise CheckpointError(f"{where}: expected weights under one of {', '.join(SECTIONS)}, model_state_dict")
    weights = NamedWeights(found, f"{where}: model_state_dict")
    student = any(str(name).startswith("student.") for name in found)
    who, memory = ("student", "memory_s") if student else ("actor", "memory_a")
    parts = _Parts(who, f"{memory}.rnn.", f"{who}_obs_normalizer", "policy", deterministic=student)
    normalization = _normalizer(weights, f"{parts.normalizer}.")
    if isinstance(content.get("obs_norm_state_dict"), dict):  # of rsl_rl 2
        normalization = _normalizer(NamedWeights(content["obs_norm_state_dict"], f"{where}: obs_norm_state_dict"), "")
    return weights, parts, normalization


def _normalizer(weights: NamedWeights, prefix: str) -> Normalizer | None:
    if not weights.has(f"{prefix}_mean"):
        return None
    mean, deviation = (weights.take(f"{prefix}{name}", 2) for name in ("_mean", "_std"))
    weights.drop(f"{prefix}_var", f"{prefix}count")
    if mean.shape != deviation.shape or bool((deviation < 0).any()):
        raise CheckpointError(f"{weights.where}: {prefix}_std: expected deviations of shape {tuple(mean.shape)}")
    return Normalizer(mean, deviation + NORMALIZATION_EPSILON)


def _config(path: Path, given: Path | None) -> tuple[dict[str, Any], Path]:
    """The configuration of a run, {} where there is none; and its file."""
    file = given if given is not None else path.absolute().parent / RUN_CONFIG
    if given is None and not file.is_file():
        return {}, file
    try:
        found = _load_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config: {file}: {error.strerror or error}") from None
    except Exception as error:  # values that are none raise what their constructors do
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{file}: not a readable YAML file ({reason})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: expected the settings of a run, such as {RUN_CONFIG}")
    return found, file


def _load_yaml(text: str) -> Any:
    """Plain values; a tuple of Python's, as Isaac Lab writes them, is a list, and any other object None."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        pass

    def plain(loader: Any, _: str, node: Any) -> Any:
        return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else None

    for tag in ("tag:yaml.org,2002:python/", "!"):
        Loader.add_multi_constructor(tag, plain)
    return yaml.load(text, Loader)


def _settings(config: Mapping[str, Any], section: str, file: str) -> dict[str, Any]:
    """Of the run's settings those of the actor that change how it acts: activation, distribution, normalized."""
    found: Any = next((config[key] for key in (section, "policy") if isinstance(config.get(key), dict)), {})
    _class_name(found.get("class_name"), MODELS, "class_name", file)
    distribution = found.get("distribution_cfg")
    kind = distribution.get("class_name") if isinstance(distribution, dict) else None
    kind = _class_name(kind, tuple(name for name in MEANS if name), "distribution_cfg", file)
    if found.get("state_dependent_std"):
        kind = "HeteroscedasticGaussianDistribution"
    normalized = any(found.get(f"{who}obs_normalization") for who in ("", "actor_", "student_"))
    return {
        "activation": found.get("activation"),
        "distribution": kind,
        "normalized": bool(normalized or config.get("empirical_normalization")),
        "said": bool(found),
    }


def _class_name(given: object, known: tuple[str, ...], what: str, file: str) -> str | None:
    """The last part of a class of rsl_rl's own; raises CheckpointError for any other."""
    if given is None:
        return None
    *package, name = re.split(r"[.:]", str(given))
    if name not in known or (package and package[0] != "rsl_rl"):
        raise CheckpointError(f"{file}: {what}: {shown(str(given))} is not supported; {', '.join(known)} are")
    return name


def _activation(given: str | None, settings: Mapping[str, Any], path: Path, file: Path) -> str:
    name = given if given is not None else settings["activation"]
    if name is None:
        raise UsageError(
            f"{path}: a policy of rsl_rl, whose file does not say how its layers are activated: keep {RUN_CONFIG} "
            f"beside it, give it with --config, or say --activation elu (or what it was trained with)"
        )
    lowered = str(name).lower()
    chosen = OTHER_NAMES.get(lowered, lowered)
    if chosen not in ACTIVATIONS:
        raise UsageError(
            f"{'--activation' if given is not None else f'{file}: activation'}: expected one of "
            f"{', '.join(sorted({*ACTIVATIONS, *OTHER_NAMES}))}, got {shown(str(name))}"
        )
    return chosen


def _decision(settings: Mapping[str, Any], weights: NamedWeights, parts: _Parts) -> torch.nn.Module:
    """How the action comes of what the network says. A deviation beside the network says that it is a Gaussian's mean;
    a configuration that says otherwise is another run's."""
    kind = settings["distribution"]
    one_deviation = any(
        weights.has(n) for n in ("std", "log_std", "distribution.std_param", "distribution.log_std_param")
    )
    if kind is None and not settings["said"] and not one_deviation and not parts.deterministic:
        raise UsageError(
            f"{weights.where}: has no deviation of its own, so its outputs may be more than actions: keep {RUN_CONFIG} "
            f"beside it, or give it with --config"
        )
    own = {"GaussianDistribution": True, "HeteroscedasticGaussianDistribution": False}.get(str(kind), one_deviation)
    if own != one_deviation:
        has = "one" if one_deviation else "no"
        raise CheckpointError(
            f"{weights.where}: has {has} deviation beside its network, the configuration says {kind}: it is another "
            f"run's"
        )
    return MEANS[kind]()
