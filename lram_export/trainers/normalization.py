"""Running means of observations that lie beside a policy: what stable-baselines3's ``VecNormalize.save`` writes, or an
`.npz` with the same numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lram_export.episodes.npz import open_npz
from lram_export.errors import CheckpointError, UsageError
from lram_export.spec.json_fields import shown
from lram_export.trainers.inert_pickle import Thing, read_numbers
from lram_export.trainers.networks import Normalizer

BESIDE = ("*vecnormalize*.pkl", "*vec_normalize*.pkl", "*/vecnormalize.pkl")
"""What such a file is called beside a policy: by hand, by callbacks and Isaac Lab, by the zoo of stable-baselines3."""
NONE = Path("none")
"""Said in place of a file: observations are not normalized."""
HOW_TO = (
    "np.savez('normalization.npz', mean=v.obs_rms.mean, var=v.obs_rms.var, epsilon=v.epsilon, clip=v.clip_obs), v "
    "being the VecNormalize, writes the numbers alone"
)


def beside(path: Path) -> Path | None:
    """The statistics beside a policy, in its folder; None if there are none.

    Raises:
        UsageError: there are several.
    """
    folder = path.absolute().parent
    found = sorted({file for pattern in BESIDE for file in folder.glob(pattern) if file.is_file()})
    if len(found) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in found[:4])
        raise UsageError(
            f"{path}: which statistics of observations are its own? --normalization says it; there are {names}"
        )
    return found[0] if found else None


def read_normalization(path: Path, shape: tuple[int, ...]) -> Normalizer | None:
    """The normalization of observations of a shape; None where the file says that they are not normalized.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it is something else, or of other observations.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise UsageError(f"--normalization: {path}: {what}; expected a file of VecNormalize, an .npz, or none")
    found = _of_npz(path) if path.suffix == ".npz" else _of_pickle(path)
    if found is None:
        return None
    mean, var, epsilon, clip = found
    for name, values in (("mean", mean), ("var", var)):
        if not isinstance(values, np.ndarray) or values.shape != shape or not np.isfinite(values).all():
            got = values.shape if isinstance(values, np.ndarray) else type(values).__name__
            raise CheckpointError(f"{path}: {name}: expected finite numbers of shape {shape}, got {got}")
    numbers = all(isinstance(v, int | float) and v >= 0 for v in (epsilon, clip))
    if not numbers or not math.isfinite(epsilon) or clip == 0 or bool((var < 0).any() or (var + epsilon <= 0).any()):
        raise CheckpointError(f"{path}: expected variances, epsilon and clip that are positive")
    deviation = np.sqrt(var.astype(np.float64) + epsilon)
    mean, deviation = (torch.from_numpy(values.astype(np.float64))[None] for values in (mean, deviation))
    return Normalizer(mean, deviation, float(clip) if math.isfinite(clip) else None)


def _of_npz(path: Path) -> tuple[Any, Any, Any, Any]:
    names = ("mean", "var", "epsilon", "clip")
    try:
        with open_npz(path) as file:
            missing = [name for name in names if name not in file.headers]
            if missing:
                raise CheckpointError(f"{path}: {missing[0]}: missing; {HOW_TO}")
            arrays = {name: file.read(name) for name in names}
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    epsilon, clip = (float(arrays[n].reshape(-1)[0]) if arrays[n].size == 1 else None for n in ("epsilon", "clip"))
    return arrays["mean"], arrays["var"], epsilon, clip


def _of_pickle(path: Path) -> tuple[Any, Any, Any, Any] | None:
    found = read_numbers(path.read_bytes(), str(path))
    if not isinstance(found, Thing) or not found.kind.endswith(".VecNormalize"):
        kind = found.kind if isinstance(found, Thing) else type(found).__name__
        raise CheckpointError(f"{path}: expected a VecNormalize of stable-baselines3, got {shown(kind)}; {HOW_TO}")
    if not found.state.get("norm_obs", True):
        return None
    means = found.state.get("obs_rms")
    if not isinstance(means, Thing):
        raise CheckpointError(f"{path}: obs_rms: expected the statistics of one observation, not of several by name")
    return means.state.get("mean"), means.state.get("var"), found.state.get("epsilon"), found.state.get("clip_obs")
