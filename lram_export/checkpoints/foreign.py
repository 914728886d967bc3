"""What a file is that was given as a checkpoint and is none, and how to make one of it."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

from lram_export.errors import CheckpointError, describe

POLICY = "policy.pth"
_ZIP = f"then zip model.zip {POLICY}, with the run's .hydra/config.yaml beside it"
_MARK = "embed_ln.weight"
"""A weight that every LRAM has."""


def refuse_foreign(path: Path) -> None:
    """Raise CheckpointError if a file is weights in another container than the training code's `model.zip`.

    Nothing in it is run. A file that is no container of weights at all is left to the reader.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if _is_safetensors(head, path.stat().st_size):
        raise CheckpointError(f"{path}: a safetensors file; {_out_of_safetensors(path)}")
    if _is_torch_file(path, head):
        raise CheckpointError(f"{path}: a file of torch.save, not a model.zip; {_out_of_torch(path)}")


def refuse_nested(content: object, where: str) -> None:
    """Raise CheckpointError if what should be named weights holds them under a key."""
    keys = nested_weights(content)
    if keys:
        raise CheckpointError(
            f"{where}: the weights are nested under {_index(keys)}; save that dictionary itself as {POLICY}"
        )


def refuse_prefixed(names: list[str], where: str) -> None:
    """Raise CheckpointError if every name of an LRAM is there, behind a prefix that is not known."""
    marked = [name for name in names if name.endswith(f".{_MARK}")]
    if marked and _MARK not in names:
        prefix = marked[0].removesuffix(_MARK)
        raise CheckpointError(
            f"{where}: the names of the weights begin with '{prefix}'; save them without it: "
            f"{{k.removeprefix('{prefix}'): w for k, w in weights.items()}}"
        )


def nested_weights(content: object, depth: int = 3) -> tuple[str, ...] | None:
    """Keys under which named tensors lie in nested dictionaries, () if they are not nested; None if there are none.

    Of several places that of an LRAM's weights counts, else the one with the most.
    """
    found = _places(content, depth)
    if not found:
        return None
    return max(found, key=lambda keys: (any(n.endswith(_MARK) for n in found[keys]), len(found[keys])))


def _places(content: object, depth: int) -> dict[tuple[str, ...], list[str]]:
    import torch

    if not isinstance(content, dict) or not content:
        return {}
    if all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content.items()):
        return {(): list(content)}
    if depth == 0:
        return {}
    inside = {key: _places(value, depth - 1) for key, value in content.items() if isinstance(key, str)}
    return {(key, *keys): names for key, places in inside.items() for keys, names in places.items()}


def _is_safetensors(head: bytes, size: int) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def _is_torch_file(path: Path, head: bytes) -> bool:
    """The container of today is a zip with a pickle, that of before 2020 a pickle."""
    if head[:1] == b"\x80":
        return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return POLICY not in names and any(name.rpartition("/")[2] == "data.pkl" for name in names)


def _out_of_safetensors(path: Path) -> str:
    if (path.parent / "config.json").is_file():
        return f"give its folder, which has the config.json: {path.parent}"
    return (
        f"it does not say the model's sizes: torch.save(safetensors.torch.load_file('{path.name}'), '{POLICY}'), {_ZIP}"
    )


def _out_of_torch(path: Path) -> str:
    import torch

    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return (
            "it holds more than weights, and nothing of it was run: where it was trained, "
            f"torch.save(policy.state_dict(), '{POLICY}'), {_ZIP}"
        )
    except Exception as error:  # torch raises many types for a damaged file
        return f"and it is damaged ({describe(error)})"
    keys = nested_weights(content)
    if keys is None:
        return "it holds no named weights"
    if not keys:
        return f"rename it to {POLICY}, {_ZIP}"
    return (
        f"its weights are nested under {_index(keys)}: "
        f"torch.save(torch.load('{path.name}'){_index(keys)}, '{POLICY}'), {_ZIP}"
    )


def _index(keys: tuple[str, ...]) -> str:
    return "".join(f"['{key}']" for key in keys)
