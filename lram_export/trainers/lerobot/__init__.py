"""The statistics that LeRobot leaves, as the interface of a policy. Free of torch.

``sources.py`` finds them in files, ``statistics.py`` has LeRobot's formulas.
"""

from __future__ import annotations

from pathlib import Path

from lram_export.errors import CheckpointError, UsageError
from lram_export.spec.interface import FieldInterface, Interface, read_interface
from lram_export.spec.json_fields import Fields, shown
from lram_export.spec.tensors import StepSpec, TensorSpec
from lram_export.step_module.policy import NAME
from lram_export.trainers.lerobot.sources import (
    ACTION,
    INFO,
    POSTPROCESSOR,
    PREPROCESSOR,
    STATE,
    STATS,
    WEIGHTS,
    Found,
    names_and_rate,
    of_dataset,
    of_processors,
    of_weights,
)
from lram_export.trainers.lerobot.statistics import MODES

CLOSE = 1e-5
"""What is further than this from LeRobot's is said."""


def is_lerobot(path: Path) -> bool:
    """Whether a path looks like a policy or a dataset of LeRobot, or like the statistics of one."""
    return path.is_file() if path.name == Path(STATS).name else _is_policy(path) or _is_dataset(path)


def interface_of(
    path: str | Path,
    observation: str = "observation",
    action: str = "action",
    *,
    mode: str | None = None,
    dataset: str | Path | None = None,
) -> tuple[Interface, list[str]]:
    """What LeRobot's statistics say of a robot, and notes on what cannot be said.

    Args:
        path: folder of a policy or of a dataset, or a dataset's `stats.json`.
        observation: what the exported policy calls ``observation.state``.
        action: what it calls ``action``.
        mode: how the policy normalizes, one of :data:`MODES`; of a dataset only, which does not say so.
        dataset: folder of the dataset that the policy was trained on, for the names of elements and the rate.

    Raises:
        UsageError: no such files; a mode that is missing, or that a policy says itself.
        CheckpointError: a file that is damaged; statistics that are missing, or do not fit.
    """
    path = Path(path)
    for side, name in (("observation", observation), ("action", action)):
        if not NAME.fullmatch(name):
            raise UsageError(f"--{side}: expected a name of letters, digits and underscores, got {shown(name)}")
    if dataset is not None and not (Path(dataset) / INFO).is_file():
        raise UsageError(f"--dataset: {dataset}: no {INFO} in it; expected a dataset of LeRobot")
    try:
        found = _found(path, mode)
        names, rate = names_and_rate(Path(dataset) if dataset is not None else _folder(path), found)
        said = Interface(
            rate,
            {observation: _observed(found, names.get(STATE))},
            {action: _acted(found, names.get(ACTION))},
        )
        return read_interface(Fields.of(said.to_json(), "")), found.notes
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def step_of(interface: Interface) -> StepSpec:
    """A step with the fields of an interface of vectors whose length it says."""
    observed, acted = (
        tuple(TensorSpec(name, (1, size), "float32") for name, of in fields.items() if (size := _size(of)))
        for fields in (interface.observation, interface.action)
    )
    return StepSpec(1, observed, acted, ())


def _is_policy(path: Path) -> bool:
    return _has_processors(path) or (path / WEIGHTS).is_file()


def _has_processors(path: Path) -> bool:
    return any((path / file).is_file() for file in (PREPROCESSOR, POSTPROCESSOR))


def _is_dataset(path: Path) -> bool:
    return any((path / file).is_file() for file in (STATS, INFO))


def _folder(path: Path) -> Path:
    """The folder of a dataset, of which the statistics may be given alone."""
    return path if path.is_dir() else path.absolute().parent.parent


def _found(path: Path, mode: str | None) -> Found:
    if _is_policy(path):
        if mode is not None:
            raise UsageError(f"--mode: only for a dataset; {path}, a policy, says itself how it normalizes")
        return of_processors(path) if _has_processors(path) else of_weights(path / WEIGHTS)
    stats = path / STATS if path.is_dir() else path
    if not stats.is_file():
        raise UsageError(f"{path}: no {PREPROCESSOR}, {WEIGHTS} or {STATS} in it; expected what LeRobot writes")
    if mode not in MODES:
        raise UsageError(f"--mode: a dataset does not say how a policy normalizes; expected one of {', '.join(MODES)}")
    return of_dataset(stats, mode)


def _observed(found: Found, names: tuple[str, ...] | None) -> FieldInterface:
    statistics = found.statistics.get(STATE)
    if statistics is None:
        return FieldInterface(names)
    if statistics.still:
        elements = ", ".join(map(str, statistics.still))
        found.notes.append(f"{STATE}: {elements}: never changed in training; any other value is huge, as in LeRobot")
    if statistics.difference() > CLOSE:
        found.notes.append(f"{STATE}: up to {statistics.difference():.2g} from LeRobot's, whose rounding is another")
    return FieldInterface(names, normalization=statistics.normalization())


def _acted(found: Found, names: tuple[str, ...] | None) -> FieldInterface:
    statistics = found.statistics.get(ACTION)
    if statistics is None:
        return FieldInterface(names)
    if statistics.still:
        elements = ", ".join(map(str, statistics.still))
        found.notes.append(f"{ACTION}: {elements}: never changed in training, and will not, as in LeRobot")
    return FieldInterface(names, scaling=statistics.scaling())


def _size(of: FieldInterface) -> int:
    """The length of a vector; 0: not said."""
    lists = (of.normalization and of.normalization.mean, of.scaling and of.scaling.scale, of.elements)
    return next((len(found) for found in lists if isinstance(found, tuple)), 0)
