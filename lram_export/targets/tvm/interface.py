"""What an artifact of the target `tvm` says about itself: enough to call its libraries, and to compile it anew.

Free of tvm and torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.identity import properties
from lram_export.errors import BundleError
from lram_export.spec.bounds import MOST_FILE_BYTES
from lram_export.spec.json_fields import Fields, read_json, shown, whole_number
from lram_export.spec.precision import FORMATS
from lram_export.spec.tensors import StateSpec
from lram_export.targets.layout import TILE, whole_tiles

STEP_FUNCTION = "step"
MODULE_FUNCTION = "main"
"""Of a module of one's own: inputs, states and weights in, outputs and next states out."""
MODULE_FUNCTION = "main"
"""Of a module of one's own: inputs, states and weights in, outputs and next states out."""
WEIGHTS_FILE = "weights.bin"
INTERFACE_FILE = "interface.json"
INTERFACE_VERSION = 2
TYPES = ("float32", "float16", "uint16", "uint8", "int8", "int32")
MOST_WEIGHTS = 64 * 256
"""64 arrays in each of the most blocks that a model can have."""
ALIGNMENT = 64
"""Bytes to which TVM's kernels expect every tensor to be aligned; those in ``weights.bin`` are, so it can be mapped."""


def library_file(platform: str) -> str:
    """Name of a platform's shared library in the artifact."""
    return f"step-{platform}.so"


@dataclass(frozen=True)
class WeightEntry:
    """A parameter of the step that holds weights, and where they begin in ``weights.bin``, in bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def bytes(self) -> int:
        """Size of the weights."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class PackedMatrix:
    """A large matrix, or ``parts`` of one shape: rows and columns of each, and how its weights are stored.

    ``format`` is `fp32` or one of :data:`~lram_export.spec.precision.FORMATS`; ``arrays`` are the names of what holds
    it.
    """

    format: str
    rows: int
    cols: int
    parts: int
    arrays: tuple[str, ...]

    @property
    def tiles(self) -> int:
        """Tiles of one part."""
        return whole_tiles(self.rows)

    @property
    def width(self) -> int:
        """Columns of the product: all rows, filled up to whole tiles."""
        return self.parts * self.tiles * TILE


@dataclass(frozen=True)
class Interface:
    """Weights in the order of the step's parameters, the matrices among them, and what there are libraries for.

    ``epsilons`` are small numbers in the norms' denominators, which only the step graph knows, by the exporter's names;
    ``memory_columns`` (platform -> columns) is the width of the tiles in which the platform's kernels keep matrices of
    the state; ``identity`` what the artifact says about itself (:mod:`lram_export.bundle.identity`).
    """

    weights: tuple[WeightEntry, ...]
    matrices: Mapping[str, PackedMatrix]
    epsilons: Mapping[str, float]
    memory_columns: Mapping[str, int]
    identity: Mapping[str, str] = field(default_factory=dict)

    def write(self, directory: Path) -> Path:
        """Write ``interface.json``."""
        path = directory / INTERFACE_FILE
        document = {"version": INTERFACE_VERSION, **asdict(self)}
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        return path


def read_interface(directory: Path) -> Interface:
    """Read ``interface.json``; raises BundleError."""
    path = directory / INTERFACE_FILE
    try:
        return _interface(Fields.of(read_json(path), ""))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: not what target tvm writes ({error}); export the bundle again") from None


def _interface(document: Fields) -> Interface:
    version = document.integer("version", 1, INTERFACE_VERSION)
    entries = [Fields.of(w, f"weights[{i}]") for i, w in enumerate(document.items("weights", MOST_WEIGHTS))]
    weights: list[WeightEntry] = []
    end = 0
    for entry in entries:
        entry.only("name", "shape", "dtype", "offset")
        shape = [whole_number(e, entry.path("shape"), 1, MOST_FILE_BYTES) for e in entry.items("shape", 8)]
        # one after the other: a weight that lies elsewhere would be another one's
        offset = entry.integer("offset", end, end)
        weights.append(WeightEntry(entry.text("name"), tuple(shape), entry.text("dtype", choices=TYPES), offset))
        end += -(-weights[-1].bytes // ALIGNMENT) * ALIGNMENT
    matrices, epsilons = document.fields("matrices"), document.fields("epsilons")
    columns = document.fields("memory_columns")
    return Interface(
        weights=tuple(weights),
        matrices={name: _packed(matrices.fields(name), {w.name for w in weights}) for name in matrices.data},
        epsilons={name: epsilons.number(name, 0.0, 1.0) for name in epsilons.data},
        memory_columns={name: columns.integer(name, TILE // 4, 1024) for name in columns.data},
        identity=properties(document) if version > 1 else {},
    )


def _packed(matrix: Fields, weights: set[str]) -> PackedMatrix:
    matrix.only("format", "rows", "cols", "parts", "arrays")
    arrays = matrix.items("arrays", 8)
    if not all(name in weights for name in arrays):
        raise ValueError(f"{matrix.path('arrays')}: expected names of weights, got {shown(arrays)}")
    rows, cols, parts = (matrix.integer(name, 1, MOST_FILE_BYTES) for name in ("rows", "cols", "parts"))
    return PackedMatrix(matrix.text("format", choices=("fp32", *FORMATS)), rows, cols, parts, tuple(arrays))


def _columns(tensor: StateSpec, most: int) -> int | None:
    """Columns of a tile of a state tensor; None if it lies as it is."""
    if tensor.role != "matrix":
        return None
    columns = tensor.shape[-1]
    room = columns + -columns % (TILE // 2)
    return next(width for width in (most, TILE, TILE // 2) if width <= most and room % width == 0)


def stored_shape(tensor: StateSpec, memory_columns: int) -> tuple[int, ...]:
    """Shape in which the kernels keep a state tensor.

    Matrices (B, heads, rows, columns) lie in tiles of columns, which are read in sequence: (B, heads, tiles, rows,
    columns), the last tile filled up with zeros.
    """
    width = _columns(tensor, memory_columns)
    if width is None:
        return tensor.shape
    batch, heads, rows, columns = tensor.shape
    return batch, heads, -(-columns // width), rows, width


def to_stored(tensor: StateSpec, value: NDArray[np.float32], memory_columns: int) -> NDArray[np.float32]:
    """A state tensor as the kernels keep it."""
    if _columns(tensor, memory_columns) is None:
        return value
    batch, heads, tiles, rows, width = stored_shape(tensor, memory_columns)
    padded = np.pad(value, [(0, 0)] * 3 + [(0, tiles * width - tensor.shape[-1])])
    return np.ascontiguousarray(padded.reshape(batch, heads, rows, tiles, width).transpose(0, 1, 3, 2, 4))


def from_stored(tensor: StateSpec, stored: NDArray[np.float32], memory_columns: int) -> NDArray[np.float32]:
    """The inverse of :func:`to_stored`; a copy."""
    if _columns(tensor, memory_columns) is None:
        return stored.copy()
    by_row = stored.transpose(0, 1, 3, 2, 4).reshape(*tensor.shape[:-1], -1)
    return np.array(by_row[..., : tensor.shape[-1]])


def write_weights(arrays: Mapping[str, NDArray[Any]], path: Path) -> tuple[WeightEntry, ...]:
    """Write ``weights.bin``: the arrays one after the other, each aligned, little endian."""
    entries, offset = [], 0
    with path.open("wb") as file:
        for name, array in arrays.items():
            entries.append(WeightEntry(name, array.shape, str(array.dtype), offset))
            file.write(array.reshape(-1).view(np.uint8).data)
            file.write(bytes(-array.nbytes % ALIGNMENT))
            offset += array.nbytes + -array.nbytes % ALIGNMENT
    return tuple(entries)


def map_weights(entries: tuple[WeightEntry, ...], path: Path) -> list[NDArray[Any]]:
    """The weights as they lie in the file, mapped into memory; raises BundleError."""
    if not entries and path.is_file() and not path.stat().st_size:
        return []  # nothing can be mapped of an empty file
    try:
        # private and writable, because tvm_ffi takes no read-only arrays; nothing writes to them
        content = np.memmap(path, np.uint8, mode="c")
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: not readable ({error}); export the bundle again") from None
    arrays = []
    end = entries[-1].offset + entries[-1].bytes if entries else 0
    if content.size != end + -end % ALIGNMENT:
        raise BundleError(f"{path}: {content.size} bytes are not the weights of {INTERFACE_FILE}; export again")
    for entry in entries:
        end = entry.offset + entry.bytes
        arrays.append(np.asarray(content[entry.offset : end]).view(entry.dtype).reshape(entry.shape))
    return arrays
