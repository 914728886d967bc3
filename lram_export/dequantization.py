"""The oracle of quantized targets: the model that computes with what the codes stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from lram_export.checkpoint import Checkpoint
from lram_export.config import ModelConfig, expected_shapes
from lram_export.lowering import LoweredPolicy, lower
from lram_export.precision import checkpoint_key
from lram_export.quantized import Quantization, QuantizedMatrix


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
