"""Where in a file a policy's weights lie, and what their names have in front: dictionaries, wrappers, prefixes.

A file with two policies, of which one is taken for the other, moves a robot by the wrong one: where there is any doubt,
it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lram_export.backbones.protocol import Weights
from lram_export.errors import CheckpointError, UsageError
from lram_export.spec.json_fields import shown

WRAPPERS = ("_orig_mod", "module")
"""Parts of a name that compiled, distributed and averaged models put before and between those of the model."""
NO_WEIGHTS = ("n_averaged", "_extra_state")
"""How names among the weights end that are none: what ``torch.optim.swa_utils`` and ``torch.nn.Module`` keep there."""
MARK = "embed_ln.weight"
"""A weight that every policy has."""
OF_STABLE_BASELINES3 = ("mlp_extractor.", "actor.latent_pi.", "actor.mu.", "q_net.q_net.")
"""How names begin in policies of stable-baselines3, whose weights alone do not say how they act."""
DEEPEST = 32
"""Levels of dictionaries and lists."""
STATISTICS = re.compile(r"(^|[._])(state_mean|state_std|obs_rms|ret_rms|\w*normaliz\w*)([._]|$)")
"""What the statistics are called by which training normalizes observations outside of the policy."""
SET_BY_TRAINING = ("state_mean", "state_std")


@dataclass(frozen=True)
class Place:
    """One policy's weights in a file: the keys of nested dictionaries and the prefix of the names under which they lie.

    ``names`` are those of the weights there, as the file has them -> without prefix and wrappers.
    """

    keys: tuple[str, ...]
    prefix: str
    names: Mapping[str, str]

    @property
    def label(self) -> str:
        """What `--weights-key` calls it; empty where the weights lie in the open."""
        return ".".join((*self.keys, *filter(None, self.prefix.split("."))))


@dataclass(frozen=True)
class FoundPolicy:
    """A policy's weights under their own names; ``beside`` are names of the same dictionary that are none of them, and
    ``among`` the labels of all policies in the file."""

    weights: Weights
    beside: tuple[str, ...]
    label: str
    among: tuple[str, ...]


def find_policy(content: object, where: str, key: str | None = None) -> FoundPolicy:
    """A policy's weights.

    Args:
        content: what the file holds: tensors in dictionaries of dictionaries.
        where: the file, for messages.
        key: which of several policies is meant, by its label or a part that only one has; None: there must be one.

    Raises:
        CheckpointError: there are none, a weight is there twice or is no tensor, or observations were normalized.
        UsageError: there are several and ``key`` does not say which, or there is none where it says.
    """
    import torch

    dictionaries = dict(_dictionaries(content, where))
    places = [place for keys, named in dictionaries.items() for place in _places(keys, named)]
    place = _chosen(places, where, key)
    if place is None:
        raise CheckpointError(f"{where}: {_no_policy(dictionaries)}")
    named = dictionaries[place.keys]
    weights: Weights = {}
    for raw, name in place.names.items():
        value = named[raw]
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{where}: {raw}: expected a tensor of torch, got {type(value).__name__}")
        if name in weights:
            raise CheckpointError(f"{where}: {name}: appears twice, with different prefixes")
        weights[name] = value
    _refuse_statistics(dictionaries, place, where)
    beside = tuple(sorted(name for name in set(named) - set(place.names) if isinstance(named[name], torch.Tensor)))
    return FoundPolicy(weights, beside, place.label, tuple(place.label for place in places))


def without_wrappers(name: str) -> str:
    """``_orig_mod.encoder.module.x`` -> ``encoder.x``."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _dictionaries(content: object, where: str) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """All dictionaries with names, under the keys that lead to them; one that is there twice once.

    Raises:
        CheckpointError: a name that cannot be shown, or nested too deeply.
    """
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], object]] = [((), content)]
    while waiting:
        keys, value = waiting.pop()
        if not isinstance(value, dict | list | tuple) or id(value) in seen:
            continue
        if len(keys) > DEEPEST:
            raise CheckpointError(f"{where}: nested more than {DEEPEST} levels deep")
        seen.add(id(value))
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
        waiting += [((*keys, str(key)), inner) for key, inner in reversed(items)]
        named = {key: inner for key, inner in items if isinstance(key, str)}
        odd = next((key for key in named if not key.isprintable()), None)
        if odd is not None:
            raise CheckpointError(f"{where}: {shown(odd)}: a name that cannot be shown")
        if named:
            yield keys, named


def _places(keys: tuple[str, ...], named: Mapping[str, object]) -> list[Place]:
    """A policy for every prefix before the mark, with all names that no longer prefix claims."""
    bare = {
        raw: without_wrappers(raw)
        for raw, value in named.items()
        if raw.rpartition(".")[2] not in NO_WEIGHTS and not isinstance(value, dict | list | tuple)
    }
    prefixes = {name.removesuffix(MARK) for name in bare.values() if f".{name}".endswith(f".{MARK}")}
    names: dict[str, dict[str, str]] = {prefix: {} for prefix in sorted(prefixes)}
    for raw, name in bare.items():
        own = [prefix for prefix in prefixes if name.startswith(prefix)]
        if own:
            prefix = max(own, key=len)
            names[prefix][raw] = name.removeprefix(prefix)
    return [Place(keys, prefix, found) for prefix, found in names.items()]


def _chosen(places: list[Place], where: str, key: str | None) -> Place | None:
    labels = ", ".join(place.label or "." for place in places)
    if key is None:
        if len(places) > 1:
            raise UsageError(f"--weights-key: {where} holds {len(places)} policies, {labels}: say which one")
        return places[0] if places else None
    asked = key.strip(".")
    found = [p for p in places if p.label == asked] or [p for p in places if f".{asked}." in f".{p.label}."]
    if len(found) != 1:
        among = f"holds {labels}: expected one of them" if places else "holds no weights of a policy"
        raise UsageError(f"--weights-key {key}: {where} {among}")
    return found[0]


def _refuse_statistics(dictionaries: Mapping[tuple[str, ...], Mapping[str, Any]], place: Place, where: str) -> None:
    """Raise CheckpointError if training normalized observations outside of the weights."""
    import torch

    for keys, named in dictionaries.items():
        for name, value in named.items():
            if keys == place.keys and name in place.names:
                continue
            is_set = name in SET_BY_TRAINING and value is not None
            if is_set or (isinstance(value, torch.Tensor) and STATISTICS.search(name)):
                raise CheckpointError(
                    f"{where}: {'.'.join((*keys, name))}: the training run normalized its observations by statistics "
                    f"beside the policy; export them with --interface FILE, where they are said, and leave them out of "
                    f"this file"
                )


def _no_policy(dictionaries: Mapping[tuple[str, ...], Mapping[str, Any]]) -> str:
    import torch

    tensors = {
        keys: [name for name, value in named.items() if isinstance(value, torch.Tensor)]
        for keys, named in dictionaries.items()
    }
    keys = max(tensors, key=lambda keys: len(tensors[keys]), default=())
    if not tensors.get(keys):
        return "it holds no named weights"
    inside = f" under {'.'.join(keys)}" if keys else ""
    if any(name.startswith(OF_STABLE_BASELINES3) for name in tensors[keys]):
        return f"{len(tensors[keys])} tensors{inside} of stable-baselines3; give the zip that model.save writes"
    return (
        f"{len(tensors[keys])} tensors{inside}, {tensors[keys][0]} and others, and none is called {MARK}: these are "
        f"not the weights of a policy that this lram-export knows"
    )
