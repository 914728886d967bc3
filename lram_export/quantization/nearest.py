"""The large matrices of a step graph, and their nearest codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lram_export.spec.codes import QuantizedMatrix
from lram_export.spec.precision import FORMATS


def round_to_nearest(name: str, values: NDArray[np.float32], weight_format: str) -> QuantizedMatrix:
    """Codes of a matrix (out, in) with scales from its largest magnitudes."""
    largest = FORMATS[weight_format].largest
    if not largest:
        return QuantizedMatrix(name, weight_format, _half(values, weight_format), np.zeros((len(values), 0), "f4"))
    scales = largest_magnitudes(values, weight_format) / np.float32(largest)
    return encode(name, values, scales, weight_format)


def largest_magnitudes(values: NDArray[np.float32], weight_format: str) -> NDArray[np.float32]:
    """Largest magnitude of the inputs that share a scale, (out, groups)."""
    group = FORMATS[weight_format].inputs_per_scale(values.shape[1])
    starts = np.arange(0, values.shape[1], group)
    largest: NDArray[np.float32] = np.maximum.reduceat(np.abs(values), starts, axis=1)
    return largest


def encode(name: str, values: NDArray[np.float32], scales: NDArray[np.float32], weight_format: str) -> QuantizedMatrix:
    """Nearest codes for given scales (out, groups); where a scale is 0 all codes are."""
    largest = FORMATS[weight_format].largest
    group = FORMATS[weight_format].inputs_per_scale(values.shape[1])
    safe = np.where(scales > 0, scales, 1.0).astype(np.float32)
    per_input = np.repeat(safe, group, axis=1)[:, : values.shape[1]]
    codes = np.clip(np.rint(values / per_input), -largest, largest).astype(np.int8)
    return QuantizedMatrix(name, weight_format, codes, scales.astype(np.float32))


def _half(values: NDArray[np.float32], weight_format: str) -> NDArray[Any]:
    tensor = torch.from_numpy(values)
    if weight_format == "bf16":
        return tensor.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    largest = torch.finfo(torch.float16).max
    return tensor.clamp(-largest, largest).to(torch.float16).numpy()
