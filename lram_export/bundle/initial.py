"""The states that start as a tensor (``initial.safetensors``): each under its name, float32, for one row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lram_export.errors import BundleError
from lram_export.spec.tensors import InitialTensors, StepSpec


def write_initial(tensors: InitialTensors, path: Path) -> None:
    """Write the file."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}, path)
    path.chmod(0o644)  # safetensors writes it for the owner alone


def read_initial(path: Path, spec: StepSpec) -> dict[str, NDArray[np.float32]]:
    """Read and check the file, whose hash was checked; raises BundleError naming the tensor."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(path)
        expected = {state.name: state.shape[1:] for state in spec.starts_as_tensor}
        odd = sorted(set(found) ^ set(expected))
        if odd:
            raise ValueError(f"{odd[0]}: {'unknown tensor' if odd[0] in found else 'missing'}")
        for name, shape in expected.items():
            value = found[name]
            if value.shape != shape or value.dtype != np.float32 or not np.isfinite(value).all():
                raise ValueError(f"{name}: expected finite float32 of shape {shape}, got {value.dtype} {value.shape}")
    except (SafetensorError, OSError, ValueError) as error:
        raise BundleError(f"{path}: {error}; copy or export the bundle again") from None
    return found
