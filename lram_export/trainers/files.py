"""Tells which trainer wrote a file, by a look at it. Free of torch."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from lram_export.checkpoints.containers import POLICY, read_entry
from lram_export.checkpoints.loading import is_policy_file
from lram_export.checkpoints.torch_files import entries_of
from lram_export.errors import CheckpointError, LramError

RSL_RL, STABLE_BASELINES3 = "rsl_rl", "stable-baselines3"
DATA = "data"
MOST_DATA_BYTES = 64 << 20
"""Of the settings in a zip, with the environment's last observations."""
OF_RSL_RL = re.compile(
    rb"(actor|student)_state_dict.*mlp\.\d+\.weight|model_state_dict.*(actor|student)\.\d+\.weight", re.DOTALL
)
"""What the pickle in a file of rsl_rl names: of version 5, and of those before."""


def trainer_of(path: Path) -> str | None:
    """The trainer that wrote a file; None: none that is known here, or no readable file."""
    if not path.is_file():
        return None
    try:
        entries = entries_of(path) or ()
        if POLICY in entries and DATA in entries:
            check_size(path, DATA)
            # the original training code of LRAMs writes such zips, too, but no class of a policy
            return STABLE_BASELINES3 if b'"policy_class"' in read_entry(path, DATA) else None
        pickles = [entry for entry in entries if entry.rpartition("/")[2] == "data.pkl"]
        return RSL_RL if any(OF_RSL_RL.search(read_entry(path, entry)) for entry in pickles) else None
    except LramError:  # whoever reads it as a checkpoint says what is wrong
        return None


def check_size(path: Path, entry: str) -> None:
    """Raise CheckpointError if an entry of a zip is larger than what it should be."""
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo(entry).file_size
    if size > MOST_DATA_BYTES:
        raise CheckpointError(f"{path}: {entry}: {size} bytes, expected at most {MOST_DATA_BYTES}")


def says_its_task(path: Path) -> bool:
    """Whether it is a policy that does one thing: what a Python file makes, or another trainer wrote."""
    return is_policy_file(path) or trainer_of(path) is not None
