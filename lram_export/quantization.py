"""The quantization pass, between lowering and the exporters: large matrices become codes and scales, once.

What comes out is a :class:`~lram_export.lowering.LoweredPolicy` again. Its model and its step graph compute
with the dequantized weights, so they are the oracle every target is held to; its ``quantization`` has the
codes that every exporter compiles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lram_export.checkpoint import Checkpoint
from lram_export.config import ModelConfig, expected_shapes
from lram_export.lowering import LoweredPolicy, lower
from lram_export.precision import FORMATS, GROUP, PRECISIONS, checkpoint_key, select_matrices
from lram_export.quantized import Quantization, QuantizedMatrix

Quantizer = Callable[[str, NDArray[np.float32]], QuantizedMatrix]
"""From a matrix's name and its float32 values (out, in) to codes."""


@dataclass(frozen=True)
class QuantizationOptions:
    """What to quantize and how: a named precision, and patterns of matrices to leave in float32."""

    precision: str = "fp32"
    keep_fp32: Sequence[str] = ()


def quantize(policy: LoweredPolicy, options: QuantizationOptions) -> LoweredPolicy:
    """Round every large matrix to the nearest codes; a policy in `fp32` comes back as it is.

    Raises:
        UsageError: a pattern that fits no matrix.
    """
    names = select_matrices(matrix_names(policy), options.keep_fp32)
    if options.precision == "fp32":
        return policy
    weights = PRECISIONS[options.precision].weights
    matrices = {name: round_to_nearest(name, matrix_values(policy, name), weights) for name in names}
    return with_quantization(policy, Quantization(options.precision, "round-to-nearest", matrices))


def matrix_names(policy: LoweredPolicy) -> tuple[str, ...]:
    """Every matrix of the step graph that can be quantized, in the graph's order."""
    names = (name for name, module in policy.graph.named_modules() if isinstance(module, torch.nn.Linear))
    return select_matrices(names)


def matrix_values(policy: LoweredPolicy, name: str) -> NDArray[np.float32]:
    """A matrix of the step graph, (out, in)."""
    module: Any = policy.graph.get_submodule(name)
    values: NDArray[np.float32] = module.weight.detach().numpy()
    return values


def round_to_nearest(name: str, values: NDArray[np.float32], weight_format: str) -> QuantizedMatrix:
    """Codes of a matrix (out, in) with scales from its largest magnitudes."""
    largest = FORMATS[weight_format].largest
    if not largest:
        return QuantizedMatrix(name, weight_format, _half(values, weight_format), np.zeros((len(values), 0), "f4"))
    scales = largest_magnitudes(values, weight_format) / np.float32(largest)
    return encode(name, values, scales, weight_format)


def largest_magnitudes(values: NDArray[np.float32], weight_format: str) -> NDArray[np.float32]:
    """Largest magnitude of the inputs that share a scale, (out, groups)."""
    group = GROUP if FORMATS[weight_format].grouped else values.shape[1]
    starts = np.arange(0, values.shape[1], group)
    largest: NDArray[np.float32] = np.maximum.reduceat(np.abs(values), starts, axis=1)
    return largest


def encode(name: str, values: NDArray[np.float32], scales: NDArray[np.float32], weight_format: str) -> QuantizedMatrix:
    """Nearest codes for given scales (out, groups); where a scale is 0 all codes are."""
    largest = FORMATS[weight_format].largest
    group = GROUP if FORMATS[weight_format].grouped else values.shape[1]
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


def with_quantization(policy: LoweredPolicy, quantization: Quantization) -> LoweredPolicy:
    """The policy that computes with the dequantized matrices, and carries their codes."""
    checkpoint = dequantized_checkpoint(policy.checkpoint, quantization.matrices)
    oracle = lower(checkpoint, policy.task, name=policy.name, batch_size=policy.spec.batch_size)
    return dataclasses.replace(oracle, quantization=quantization)


def dequantized_checkpoint(checkpoint: Checkpoint, matrices: Mapping[str, QuantizedMatrix]) -> Checkpoint:
    """The checkpoint with the dequantized values of some matrices in place of its own."""
    weights = {**checkpoint.weights, **dequantized_weights(checkpoint.config, matrices)}
    return dataclasses.replace(checkpoint, weights=weights)


def dequantized_weights(config: ModelConfig, matrices: Mapping[str, QuantizedMatrix]) -> dict[str, torch.Tensor]:
    """Weights under their names in the checkpoint; rows of the head that no code covers are 0."""
    shapes, weights = expected_shapes(config), {}
    for name, matrix in matrices.items():
        key = checkpoint_key(name)
        values = torch.zeros(shapes[key])
        values[: matrix.shape[0]] = torch.from_numpy(matrix.dequantize())
        weights[key] = values
    return weights
