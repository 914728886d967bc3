"""Files of ``torch.save``, read without running anything in them."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lram_export.errors import CheckpointError, describe

if TYPE_CHECKING:
    import torch

TORCHSCRIPT = "constants.pkl"
"""An entry that only the archive of a TorchScript program has."""


class Foreign:
    """Stands for an object that is no tensor and no plain value: it takes whatever the file gives it, and does nothing.

    Training scripts save more than weights: settings, schedules, numbers of numpy. What such an object is called is
    all that is read of it.
    """

    kind = ""

    def __new__(cls, *arguments: object, **named: object) -> Foreign:
        """Whatever the arguments are."""
        return super().__new__(cls)

    def __init__(self, *arguments: object, **named: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def load_torch(source: Path | BytesIO, where: str) -> object:
    """What a file of ``torch.save`` holds: tensors and plain values; :class:`Foreign` in place of all others.

    Args:
        source: the file, or its content.
        where: what it is called in messages.

    Raises:
        CheckpointError: it is damaged, or wants to run code of the system.
    """
    import torch
    from torch.serialization import safe_globals

    allowed: list[tuple[Any, str]] = [(_foreign_type(name), name) for name in _foreign_names(source)]
    try:
        with safe_globals(allowed):  # type: ignore[arg-type]
            return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{where} holds more than weights{_reason(error)}; refused, nothing of it ran. Where it was trained, "
            f"torch.save(policy.state_dict(), 'policy.pt') writes the weights alone"
        ) from None
    except Exception as error:  # torch raises many types for a damaged file
        raise CheckpointError(f"{where} is damaged ({describe(error)})") from None


def is_array(tensor: torch.Tensor) -> bool:
    """Whether a tensor is plain numbers in memory, in a dimension or more: not sparse, nested, or without values."""
    import torch

    plain = tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_meta or tensor.is_quantized)
    return plain and tensor.dim() > 0


def entries_of(path: Path) -> tuple[str, ...] | None:
    """Names of what is in a zip; None if it is none, or not a whole one."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(archive.namelist())
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError, NotImplementedError, ValueError):
        return None


def is_torch_file(entries: tuple[str, ...] | None, head: bytes) -> bool:
    """Whether a file was written by ``torch.save``, by its entries and first bytes: a zip, before 2020 a pickle."""
    return head[:1] == b"\x80" or any(_is_pickle(entry) for entry in entries or ())


def is_torchscript(entries: tuple[str, ...] | None) -> bool:
    """Whether a file is a program of TorchScript, which lies in the same container."""
    found = entries or ()
    return any(_is_pickle(entry) and f"{entry.rpartition('/')[0]}/{TORCHSCRIPT}" in found for entry in found)


def _is_pickle(entry: str) -> bool:
    return entry.rpartition("/")[2] == "data.pkl"


def _foreign_names(source: Path | BytesIO) -> list[str]:
    """Names of what is neither a tensor nor a plain value; none where the container does not tell, which then may hold
    nothing else."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        return get_unsafe_globals_in_checkpoint(source)
    except Exception:  # damaged or of before 2020: reading it says what is wrong
        return []
    finally:
        if isinstance(source, BytesIO):
            source.seek(0)


def _foreign_type(name: str) -> Any:
    """A dictionary is filled after it was made, so it has to be one."""
    return (
        _dictionary
        if name == "collections.defaultdict"
        else type(name if name.isprintable() else "odd", (Foreign,), {"kind": name, "__module__": "builtins"})
    )


_REASON = re.compile(r"((?:Unsupported|Trying to load|Can only) [^\n]+?)(?: was not an allowed|\.\s|\n|$)")


def _reason(error: Exception) -> str:
    """What torch did not take, of its page of advice, some of which is to run the code."""
    said = _REASON.search(str(error))
    return f" ({said[1]})" if said and said[1].isprintable() else ""


def _dictionary(*arguments: object) -> OrderedDict[Any, Any]:
    return OrderedDict()
