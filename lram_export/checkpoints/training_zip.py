"""The original training code's `model.zip`: what it holds beside the weights that changes how the policy acts."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from lram_export.checkpoints.containers import read_entry
from lram_export.checkpoints.torch_files import entries_of, load_torch
from lram_export.errors import CheckpointError
from lram_export.spec.interface import SMALLEST_DEVIATION, Normalization

VARIABLES = "pytorch_variables.pth"
STATISTICS = ("state_mean", "state_std")


def normalization_of(path: Path) -> Normalization | None:
    """What the original agent does to observations, outside of the weights: ``(state - state_mean) / state_std``.

    The file that says it lies in the zip, or beside the weights where that was unpacked.

    Raises:
        CheckpointError: statistics that are no such numbers, or one without the other.
    """
    beside = path.parent / VARIABLES
    if VARIABLES in (entries_of(path) or ()):
        where = f"{path}: {VARIABLES}"
        variables = load_torch(BytesIO(read_entry(path, VARIABLES)), where)
    elif beside.is_file() and path.suffix != ".zip":
        where, variables = str(beside), load_torch(beside, str(beside))
    else:
        return None
    if not isinstance(variables, dict) or all(variables.get(name) is None for name in STATISTICS):
        return None
    mean, deviation = (_numbers(variables.get(name), f"{where}: {name}") for name in STATISTICS)
    if len(mean) != len(deviation):
        raise CheckpointError(
            f"{where}: state_std: expected {len(mean)} numbers, as in state_mean, got {len(deviation)}"
        )
    smallest = min(deviation)
    if not smallest >= SMALLEST_DEVIATION:
        raise CheckpointError(f"{where}: state_std: expected positive numbers, got {smallest:g}")
    return Normalization(mean, deviation)


def _numbers(value: object, where: str) -> tuple[float, ...]:
    """A vector of statistics, float32 as the agent computes with it."""
    import torch

    if not isinstance(value, torch.Tensor) or value.dim() != 1 or not value.is_floating_point() or not len(value):
        got = (
            f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        )
        raise CheckpointError(f"{where}: expected a vector of floats, one for every number of a state, got {got}")
    found = value.float()
    if not bool(torch.isfinite(found).all()):
        raise CheckpointError(f"{where}: expected finite numbers")
    return tuple(found.tolist())
