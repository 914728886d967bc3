"""Files that training leaves weights in: what each is, and the named tensors in it.

A `model.zip` of the original training code, a file of ``torch.save`` (a bare state dict, a checkpoint of Lightning or
of a script of one's own), safetensors in one file or in several.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from lram_export.checkpoints.torch_files import Foreign, entries_of, is_torch_file, is_torchscript, load_torch
from lram_export.errors import CheckpointError, UsageError, describe
from lram_export.spec.json_fields import Fields, read_json, shown
from lram_export.system.files import file_sha256

POLICY = "policy.pth"
"""The entry of a `model.zip` that has the weights."""
SAFETENSORS_FILE = "model.safetensors"
INDEX_SUFFIX = ".index.json"
STANDARD_FILES = tuple(
    file for name in (SAFETENSORS_FILE, "pytorch_model.bin") for file in (name, f"{name}{INDEX_SUFFIX}")
)
"""What a folder of the Hugging Face Hub has its weights in: one file, or the index of several."""
SHARD = re.compile(r"(?P<name>.+)-\d{5}-of-\d{5}(?P<suffix>\.\w+)")
MOST_SHARDS = 1 << 12

OTHERS: Sequence[tuple[bytes, str]] = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: git lfs pull fetches it"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it; weights of torch are read"),
    (b"GGUF", "a GGUF file of llama.cpp; weights of torch are read"),
    (b"\x93NUMPY", "one array of numpy; named weights are read"),
    (b"<!DOCTYPE", "a web page: the download went wrong"),
    (b"<html", "a web page: the download went wrong"),
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
)
"""How files begin that are given by mistake -> what they are."""


@dataclass(frozen=True)
class Container:
    """What was read of a file. ``what`` it is, for people; ``content`` are tensors, in dictionaries; ``sha256`` is that
    of the file, of several files one over theirs."""

    path: Path
    what: str
    content: object
    sha256: str

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"{self.path}: {self.what}"


def read_container(path: Path) -> Container:
    """Read a file of weights; nothing in it is run.

    Raises:
        CheckpointError: it is damaged, or something else: one line says what, and what to do with it.
    """
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path)
    shard = SHARD.fullmatch(path.name)
    if shard is not None:
        index = f"{shard['name']}{shard['suffix']}{INDEX_SUFFIX}"
        raise CheckpointError(f"{path}: one of several files that hold the weights: give their index, {index}")
    with path.open("rb") as file:
        head = file.read(64)
    if _is_safetensors(head, path.stat().st_size):
        tensors = _load_safetensors(path)
        return Container(path, f"a safetensors file of {len(tensors)} tensors", tensors, file_sha256(path))
    entries = entries_of(path)
    if POLICY not in (entries or ()) and is_torch_file(entries, head):
        return _read_torch_file(path, entries)
    if entries is None:
        raise CheckpointError(f"{path}: {_what_else(path, head)}")
    content = load_torch(BytesIO(read_entry(path, POLICY)), f"{path}: {POLICY}")
    return Container(path, POLICY, content, file_sha256(path))


def weights_of_folder(folder: Path) -> Path | None:
    """The file in a folder that has the weights, as on the Hugging Face Hub; None if there is none.

    Raises:
        UsageError: there are several.
    """
    found = [name for name in STANDARD_FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise UsageError(f"{folder}: it holds {' and '.join(found)}: give the one that is meant")
    return folder / found[0] if found else None


def read_entry(path: Path, entry: str) -> bytes:
    """An entry of a zip; raises CheckpointError where it is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            if entry not in archive.namelist():
                raise CheckpointError(f"{path}: {_what_zip(archive.namelist(), entry)}")
            return archive.read(entry)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile and what unpacks for it raise a dozen types for a damaged or encrypted file
        raise CheckpointError(f"{path}: not a complete zip file ({describe(error)})") from None


def _read_torch_file(path: Path, entries: tuple[str, ...] | None) -> Container:
    if is_torchscript(entries):
        raise CheckpointError(
            f"{path}: a program of TorchScript: its weights alone are read. Where it was made, "
            f"torch.save(module.state_dict(), 'policy.pt') writes them"
        )
    content = load_torch(path, f"{path}: a file of torch.save, which")
    if isinstance(content, Foreign):
        raise CheckpointError(
            f"{path}: a whole object of torch.save, a {shown(content.kind)}, not its weights: loading it would run "
            f"code. Where it was trained, torch.save(policy.state_dict(), 'policy.pt') writes them"
        )
    return Container(path, _what_torch(content), content, file_sha256(path))


def _what_torch(content: object) -> str:
    import torch

    if not isinstance(content, dict):
        return f"a file of torch.save with a {type(content).__name__}"
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        return f"a bare state dict of {len(content)} tensors"
    if "pytorch-lightning_version" in content:
        return f"a checkpoint of Lightning {shown(content['pytorch-lightning_version'])}"
    return f"a checkpoint of torch.save with {', '.join(shown(key) for key in list(content)[:6])}"


def _is_safetensors(head: bytes, size: int) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def _load_safetensors(path: Path) -> dict[str, object]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def _read_shards(path: Path) -> Container:
    """The files that an index names, which lie beside it: of each the tensors that the index says are there."""
    try:
        listed = Fields.of(read_json(path), "").fields("weight_map").data
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    files = sorted({file for file in listed.values() if isinstance(file, str)})
    simple = all(Path(file).name == file and file.isprintable() for file in files)
    if not files or len(files) > MOST_SHARDS or not simple or any(not isinstance(f, str) for f in listed.values()):
        raise CheckpointError(f"{path}: weight_map: expected names of files beside it")
    content: dict[str, object] = {}
    for file in files:
        shard = path.parent / file
        if not shard.is_file():
            raise CheckpointError(f"{path}: weight_map: {file} is not beside it: one of {len(files)} files is missing")
        found = _load_safetensors(shard) if shard.suffix == ".safetensors" else load_torch(shard, str(shard))
        for name in (name for name, holder in listed.items() if holder == file):
            if not isinstance(found, dict) or name not in found:
                raise CheckpointError(f"{path}: weight_map: {shown(name)}: not in {file}")
            content[name] = found[name]
    digests = "".join(f"{file_sha256(path.parent / file)} {file}\n" for file in files)
    what = f"{len(files)} files of {len(content)} tensors"
    return Container(path, what, content, hashlib.sha256(digests.encode()).hexdigest())


def _what_else(path: Path, head: bytes) -> str:
    """What a file is that has no weights."""
    if not head:
        return "an empty file"
    for beginning, what in OTHERS:
        if head.startswith(beginning):
            return what
    if path.suffix == ".onnx":
        return "an ONNX graph: a checkpoint of its training is read, from which a step is made anew"
    if path.suffix == ".zip" or head[:2] == b"PK":
        return "not a complete zip file"
    return "not a file of weights: expected a model.zip, a file of torch.save or of safetensors"


def _what_zip(names: Sequence[str], entry: str) -> str:
    """What a zip is that has no weights of ours."""
    if names and all(name.endswith(".npy") for name in names):
        return "arrays of numpy (.npz): weights of torch are read"
    if any(name.endswith("model.json") or name.startswith("archive_format") for name in names):
        return (
            "an archive of torch.export: its weights alone are read, as torch.save(module.state_dict(), 'policy.pt') "
            "writes them"
        )
    return f"the zip holds no {entry}; is this an LRAM model.zip?"
