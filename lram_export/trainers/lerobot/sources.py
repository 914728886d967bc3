"""Finds statistics in the files that LeRobot writes. Free of torch.

They are in one of three places, here as LeRobot 0.4.4 has them in its source:

* beside a policy, ``policy_preprocessor.json`` and ``policy_postprocessor.json``. Of their ``steps`` those that are
  ``normalizer_processor`` and ``unnormalizer_processor`` have a ``config`` (``eps``, ``features``, ``norm_map``) and a
  ``state_file``, safetensors with ``observation.state.mean`` and so on (``processor/pipeline.py``,
  ``DataProcessorPipeline._save_pretrained``; ``processor/normalize_processor.py``);
* among the weights of policies from before there were processors, ``model.safetensors``, as
  ``normalize_inputs.buffer_observation_state.mean`` and ``unnormalize_outputs.buffer_action.mean``: which statistics
  there are tells the mode (``policies/normalize.py`` of 0.3);
* in a dataset, ``meta/stats.json``, feature by feature, with all modes' statistics. Beside it, ``meta/info.json`` knows
  the names of the elements and ``fps`` (``datasets/utils.py``).

Errors are ValueErrors that name the file and the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lram_export.spec.bounds import MOST_OBSERVATION
from lram_export.spec.interface import MOST_RATE, Floats
from lram_export.spec.json_fields import Fields, read_json, shown
from lram_export.trainers.lerobot.statistics import EPSILON, IDENTITY, MODES, STATISTICS, Statistics

STATE, ACTION = "observation.state", "action"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
WEIGHTS, STATS, INFO = "model.safetensors", "meta/stats.json", "meta/info.json"
NORMALIZER, UNNORMALIZER = "normalizer_processor", "unnormalizer_processor"
OTHER_STEPS = ("rename_observations_processor", "to_batch_processor", "device_processor", "tokenizer_processor")
"""Steps of a pipeline that leave the numbers of a vector as they are."""
INPUTS, OUTPUTS = "normalize_inputs.buffer_", "unnormalize_outputs.buffer_"
"""Before the name of a feature, with an underscore for a dot, among weights."""
MOST_STEPS, MOST_FEATURES = 64, 1024


@dataclass
class Found:
    """The statistics of the features that are normalized, and notes on what cannot be said."""

    statistics: dict[str, Statistics] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, features: Iterable[str]) -> None:
        """Note features that are normalized, too, for which an interface has no place."""
        for name in sorted(features):
            why = "an image is pixels" if "image" in name else f"only {STATE} and {ACTION} are read"
            self.notes.append(f"{name}: statistics are left out, {why}; the policy has to normalize it itself")


def of_processors(folder: Path) -> Found:
    """What the pipelines beside a policy say."""
    found = Found()
    with _naming(PREPROCESSOR):
        _take(folder, PREPROCESSOR, NORMALIZER, STATE, found)
    with _naming(POSTPROCESSOR):
        _take(folder, POSTPROCESSOR, UNNORMALIZER, ACTION, found)
    return found


def of_weights(path: Path) -> Found:
    """What the weights of a policy from before there were processors say."""
    found = Found()
    with _naming(path.name):
        there = _tensors(path)
        for feature, prefix in ((STATE, INPUTS), (ACTION, OUTPUTS)):
            where = prefix + feature.replace(".", "_")
            modes = [mode for mode, pair in STATISTICS.items() if any(f"{where}.{name}" in there for name in pair)]
            if len(modes) > 1:
                raise ValueError(f"{where}: expected the statistics of one mode, got those of {', '.join(modes)}")
            for mode in modes:
                one, other = (_tensor(path, f"{where}.{name}") for name in STATISTICS[mode])
                found.statistics[feature] = Statistics(where, mode, one, other, every_range=True)
        if not found.statistics:
            raise ValueError(f"no statistics of LeRobot in it, such as {INPUTS}observation_state.mean")
        inputs = {name.removeprefix(INPUTS).rpartition(".")[0] for name in there if name.startswith(INPUTS)}
        found.leave_out(inputs - {STATE.replace(".", "_")})
    return found


def of_dataset(path: Path, mode: str) -> Found:
    """What the statistics of a dataset are to a policy that normalizes in one mode."""
    found = Found()
    if mode == IDENTITY:
        return found
    with _naming(path.name):
        stats = Fields.of(read_json(path), "")
        for feature in (STATE, ACTION):
            of = stats.fields(feature)
            one, other = (_list(of, name) for name in STATISTICS[mode])
            found.statistics[feature] = Statistics(feature, mode, one, other)
        found.leave_out(name for name in stats.data if name.startswith("observation.") and name != STATE)
    return found


def names_and_rate(folder: Path, found: Found) -> tuple[dict[str, tuple[str, ...]], float | None]:
    """The names of elements by feature, and the rate, where a folder is that of a dataset."""
    if not (folder / INFO).is_file():
        return {}, None
    names = {}
    with _naming(INFO):
        info = Fields.of(read_json(folder / INFO), "")
        features = info.fields("features")
        for feature in (STATE, ACTION):
            given = features.fields(feature).data.get("names") if feature in features.data else None
            if isinstance(given, dict) and len(given) == 1:  # {"motors": [...]}: datasets before version 3
                given = next(iter(given.values()))
            if given is None:
                continue
            if not isinstance(given, list) or any(not isinstance(n, str) for n in given) or len({*given}) < len(given):
                found.notes.append(f"{feature}: names are left out, expected different texts, got {shown(given)}")
                continue
            size = found.statistics[feature].one.size if feature in found.statistics else len(given)
            if len(given) != size:
                raise ValueError(f"features.{feature}.names: expected {size}, as many as statistics, got {len(given)}")
            names[feature] = tuple(given)
        rate = None if info.data.get("fps") is None else info.number("fps", 1 / MOST_RATE, MOST_RATE)
    return names, rate


def _take(folder: Path, file: str, kind: str, feature: str, found: Found) -> None:
    """Take the statistics of one feature from the step of a pipeline that is of a kind."""
    entries = Fields.of(read_json(folder / file), "").items("steps", MOST_STEPS)
    steps = [Fields.of(entry, f"steps[{i}]") for i, entry in enumerate(entries)]
    kinds = [step.data.get("registry_name", step.data.get("class")) for step in steps]
    found.notes += [
        f"{file}: {shown(other)} is no part of an interface; the policy has to do it, or whoever calls it"
        for other in kinds
        if other not in (kind, *OTHER_STEPS)
    ]
    if kinds.count(kind) > 1:
        raise ValueError(f"steps: expected one {kind}, got {kinds.count(kind)}")
    if kind not in kinds:
        return  # LeRobot normalizes nothing, either
    step = steps[kinds.index(kind)]
    config = step.fields("config")
    modes = _modes(config)
    mode = modes.pop(feature, IDENTITY)
    if mode != IDENTITY:
        state = step.text("state_file")
        if Path(state).name != state:
            raise ValueError(f"{step.path('state_file')}: expected the name of a file, got {shown(state)}")
        epsilon = config.number("eps", 0.0) if "eps" in config.data else EPSILON
        one, other = (_tensor(folder / state, f"{feature}.{name}") for name in STATISTICS[mode])
        found.statistics[feature] = Statistics(feature, mode, one, other, epsilon)
    modes.pop(ACTION, None)  # the preprocessor's is for training
    found.leave_out(modes)


def _modes(config: Fields) -> dict[str, str]:
    """The mode of every feature that a step normalizes."""
    types, modes, found = config.fields("features"), config.fields("norm_map"), {}
    only = (
        config.items("normalize_observation_keys", MOST_FEATURES)
        if "normalize_observation_keys" in config.data
        else None
    )
    for name in types.data:
        kind = types.fields(name).text("type")
        mode = modes.text(kind, MODES) if kind in modes.data else IDENTITY
        if mode != IDENTITY and (only is None or kind == "ACTION" or name in only):
            found[name] = mode
    return found


def _tensors(path: Path) -> set[str]:
    """The names in a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return set(file.keys())


def _tensor(path: Path, name: str) -> Floats:
    """One vector of a safetensors file, of which nothing else is read."""
    from safetensors import safe_open

    if name not in _tensors(path):
        raise ValueError(f"{name}: missing in {path.name}")
    with safe_open(path, framework="np") as file:
        return _vector(file.get_tensor(name), name)


def _list(stats: Fields, name: str) -> Floats:
    """One vector of JSON."""
    numbers = Fields({str(i): value for i, value in enumerate(stats.items(name, MOST_OBSERVATION))}, stats.path(name))
    return _vector(np.array([numbers.number(i) for i in numbers.data]), stats.path(name))


def _vector(values: Any, where: str) -> Floats:
    """Numbers as LeRobot takes them: float32."""
    if values.ndim != 1 or not 1 <= values.size <= MOST_OBSERVATION or values.dtype.kind not in "fiu":
        raise ValueError(f"{where}: expected a vector of numbers, got {values.dtype} of shape {values.shape}")
    found: Floats = values.astype(np.float32)
    wrong = found[~np.isfinite(found)]
    if wrong.size:
        raise ValueError(f"{where}: expected finite numbers, got {wrong[0]:g}")
    return found


@contextmanager
def _naming(file: str) -> Iterator[None]:
    """Say in which file something is wrong."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror or error}") from None
    except (ValueError, TypeError, SafetensorError) as error:
        raise ValueError(f"{file}: {error}") from None
