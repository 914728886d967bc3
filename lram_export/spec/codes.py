"""Quantized matrices as a bundle holds them, once for all targets (``quantized.safetensors``). Free of torch.

The file lies in the bundle's folder, or, where the bundle has an ONNX model that computes with the codes, beside that:
a model may refer to files in its own folder only.

Per matrix NAME, in the file: ``NAME.codes`` and, for integer formats, ``NAME.scales``; for static activation
ranges ``NAME.activation``. Codes are

* int8: int8 (out, in);
* int8g: uint8 (out, groups * 128), each stored as code + 128; inputs are padded with code 0 to whole groups of 128;
* int4: uint8 (out, groups * 32), two codes per byte, the even input in the low half, each stored as code + 8;
  inputs are padded with code 0 to whole groups of 64;
* fp16: float16 (out, in);
* bf16: uint16 (out, in), the upper halves of float32 numbers.

Scales are float32 (out, groups), one group for int8. ``activation`` is float32 (2,): scale and zero point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.errors import BundleError
from lram_export.spec.precision import FORMATS, WeightFormat

NEAREST, GPTQ = METHODS = ("round-to-nearest", "gptq")
"""How codes come about."""
QUANTIZED_FILE = "quantized.safetensors"
BESIDE_MODEL = "onnxruntime"
"""Target whose model refers to the codes."""
QUANTIZED_PLACES = (QUANTIZED_FILE, f"{BESIDE_MODEL}/{QUANTIZED_FILE}")
"""Where the file may be in a bundle; up to schema version 6 only the first."""
CODES, SCALES, ACTIVATION = ".codes", ".scales", ".activation"
_STORED_TYPES = {"int8": "int8", "int8g": "uint8", "int4": "uint8", "fp16": "float16", "bf16": "uint16"}


@dataclass(frozen=True)
class ActivationRange:
    """Static 8-bit range of a matrix's input: x = (code - zero_point) * scale with code from 0 to 255."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class QuantizedMatrix:
    """One matrix (out, in) of the step graph, ``y = W x``, in a format of :data:`~lram_export.spec.precision.FORMATS`.

    Attributes:
        name: module path in the step graph, for example ``blocks.0.proj_up``.
        format: ``int8``, ``int8g``, ``int4``, ``fp16`` or ``bf16``.
        codes: (out, in). int8 and int8g: int8 from -127 to 127. int4: int8 from -7 to 7. fp16: float16. bf16: uint16,
            the upper halves of float32 numbers.
        scales: (out, groups) float32; W[o, i] = codes[o, i] * scales[o, i // group]. No groups if the codes
            are floating-point numbers.
        activation: static range of the input, only for `w8a8`.
    """

    name: str
    format: str
    codes: NDArray[Any]
    scales: NDArray[np.float32]
    activation: ActivationRange | None = None

    def __post_init__(self) -> None:
        """Lay the codes out row by row; those of a transposed matrix need not be. Toolkits read memory as it lies."""
        object.__setattr__(self, "codes", np.ascontiguousarray(self.codes))

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = self.codes.shape
        return rows, columns

    @property
    def group(self) -> int:
        """Inputs that share a scale: 64 for int4, 128 for int8g, all of them for int8."""
        return FORMATS[self.format].inputs_per_scale(self.shape[1])

    @property
    def stored_bytes(self) -> int:
        """Bytes of codes and scales in the bundle."""
        return self.stored_codes().nbytes + self.scales.nbytes

    def dequantize(self) -> NDArray[np.float32]:
        """The matrix that the codes stand for, (out, in) float32."""
        if self.format == "bf16":
            return (self.codes.astype(np.uint32) << 16).view(np.float32)
        if self.format == "fp16":
            return self.codes.astype(np.float32)
        per_input = np.repeat(self.scales, self.group, axis=1)[:, : self.shape[1]]
        return self.codes.astype(np.float32) * per_input

    def stored_codes(self) -> NDArray[Any]:
        """The codes as the file holds them (see the module's text)."""
        description = FORMATS[self.format]
        if not description.group:
            return self.codes
        rows, columns = self.shape
        offset = _offset(description)
        padded = np.full((rows, self.scales.shape[1] * description.group), offset, np.uint8)
        padded[:, :columns] = self.codes.astype(np.int16) + offset
        return padded if description.bits == 8 else padded[:, 0::2] | (padded[:, 1::2] << 4)


def unpack_int4(stored: NDArray[np.uint8], columns: int) -> NDArray[np.int8]:
    """Codes from -8 to 7, (out, ``columns``), from two per byte."""
    halves = np.stack([stored & 15, stored >> 4], axis=2).reshape(len(stored), -1)
    return halves[:, :columns].astype(np.int8) - np.int8(8)


def _offset(description: WeightFormat) -> int:
    """What a grouped format adds to codes where it stores them, so that none is negative."""
    return 1 << description.bits - 1


def _unpacked(stored: NDArray[np.uint8], description: WeightFormat) -> NDArray[np.int8]:
    """Codes of a grouped format, padding and all."""
    if description.bits == 8:
        return (stored ^ 128).view(np.int8)
    return unpack_int4(stored, 2 * stored.shape[1])


def save_quantized(matrices: Mapping[str, QuantizedMatrix], path: Path) -> None:
    """Write ``quantized.safetensors``."""
    from safetensors.numpy import save_file

    tensors: dict[str, NDArray[Any]] = {}
    for name, matrix in matrices.items():
        tensors[name + CODES] = np.ascontiguousarray(matrix.stored_codes())
        if matrix.scales.size:
            tensors[name + SCALES] = np.ascontiguousarray(matrix.scales)
        if matrix.activation is not None:
            tensors[name + ACTIVATION] = np.array([matrix.activation.scale, matrix.activation.zero_point], np.float32)
    save_file(tensors, path)
    path.chmod(0o644)  # safetensors writes it for the owner alone


@dataclass(frozen=True)
class MatrixEntry:
    """What the manifest says about one quantized matrix."""

    name: str
    format: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class QuantizedFile:
    """The quantized matrices of an opened bundle; its hash is checked, its content is read on demand."""

    path: Path
    entries: tuple[MatrixEntry, ...]

    def load(self) -> dict[str, QuantizedMatrix]:
        """Read and check all of it; raises BundleError."""
        return {matrix.name: matrix for matrix in self.matrices()}

    def matrices(self) -> Iterator[QuantizedMatrix]:
        """Read and check one matrix after the other; raises BundleError naming the tensor."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="np") as file:
                tensors = set(file.keys())
                for entry in self.entries:
                    yield _matrix(entry, tensors, file)
                if tensors:
                    raise ValueError(f"{min(tensors)}: no matrix of the manifest has it")
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise BundleError(f"{self.path}: {error}") from None


def _matrix(entry: MatrixEntry, tensors: set[str], file: Any) -> QuantizedMatrix:
    """Read a matrix, and take its tensors off the list of those that are left."""
    rows, columns = entry.shape
    description = FORMATS[entry.format]
    groups = description.groups(columns)
    stored_columns = groups * description.group * description.bits // 8 if description.group else columns

    def tensor(suffix: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        name = entry.name + suffix
        if name not in tensors:
            raise ValueError(f"{name}: missing; expected {dtype} of shape {shape}")
        tensors.discard(name)
        found: NDArray[Any] = file.get_tensor(name)
        if found.shape != shape or found.dtype != dtype:
            raise ValueError(f"{name}: expected {dtype} of shape {shape}, got {found.dtype} of shape {found.shape}")
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise ValueError(f"{name}: expected finite values")
        return found

    codes = tensor(CODES, (rows, stored_columns), _STORED_TYPES[entry.format])
    if description.group:
        padded = _unpacked(codes, description)
        if (padded[:, columns:] != 0).any():
            raise ValueError(f"{entry.name}{CODES}: expected code 0 in the padding")
        codes = padded[:, :columns]
    if description.largest and codes.size and int(codes.min()) < -description.largest:
        raise ValueError(f"{entry.name}{CODES}: expected at least {-description.largest}, got {codes.min()}")
    if entry.format == "bf16" and ((codes & 0x7F80) == 0x7F80).any():
        raise ValueError(f"{entry.name}{CODES}: expected finite values")
    scales = tensor(SCALES, (rows, groups), "float32") if groups else np.zeros((rows, 0), np.float32)
    if (scales < 0).any():
        raise ValueError(f"{entry.name}{SCALES}: expected no negative ones, got {scales.min()}")
    activation = None
    if entry.name + ACTIVATION in tensors:
        scale, zero_point = (float(v) for v in tensor(ACTIVATION, (2,), "float32"))
        if not scale > 0 or zero_point not in range(256):
            raise ValueError(
                f"{entry.name}{ACTIVATION}: expected a positive scale and a zero point from 0 to 255, "
                f"got {scale} and {zero_point}"
            )
        activation = ActivationRange(scale, int(zero_point))
    return QuantizedMatrix(entry.name, entry.format, codes, scales, activation)
