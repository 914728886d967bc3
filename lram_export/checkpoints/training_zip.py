"""The original training code's `model.zip`: what it holds beside the weights that changes how the policy acts."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from lram_export.checkpoints.containers import read_entry
from lram_export.checkpoints.torch_files import entries_of, load_torch
from lram_export.errors import CheckpointError

VARIABLES = "pytorch_variables.pth"


def refuse_normalization(path: Path) -> None:
    """The original agent normalizes observations when these are set, outside of the weights we export.

    The file that says it lies in the zip, or beside the weights where that was unpacked.
    """
    beside = path.parent / VARIABLES
    if VARIABLES in (entries_of(path) or ()):
        variables = load_torch(BytesIO(read_entry(path, VARIABLES)), f"{path}: {VARIABLES}")
    elif beside.is_file() and path.suffix != ".zip":
        variables = load_torch(beside, str(beside))
    else:
        return
    for name in ("state_mean", "state_std"):
        if isinstance(variables, dict) and variables.get(name) is not None:
            raise CheckpointError(
                f"{path}: {VARIABLES}: {name} is set, so the training run normalized its observations; "
                f"this is not supported. Fold mean and deviation into embed_state, and set {name} to None"
            )
