"""Arrays in a file, written the same way whatever numpy is there."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray


def save_npz(file: Path | IO[bytes], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as a compressed ``.npz``; raises ValueError for one of Python objects.

    `numpy.savez_compressed` before numpy 2.1 would pickle such a one, and could not be told otherwise.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
