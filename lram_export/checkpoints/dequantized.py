"""The oracle of quantized targets: the model that computes with what the codes stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.model.config import ModelConfig
from lram_export.model.matrices import checkpoint_keys
from lram_export.spec.codes import QuantizedMatrix


def dequantized_checkpoint(checkpoint: Checkpoint, matrices: Mapping[str, QuantizedMatrix]) -> Checkpoint:
    """The checkpoint with the dequantized values of some matrices in place of its own."""
    weights = {**checkpoint.weights, **dequantized_weights(checkpoint.config, matrices)}
    return dataclasses.replace(checkpoint, weights=weights)


def dequantized_weights(config: ModelConfig, matrices: Mapping[str, QuantizedMatrix]) -> dict[str, torch.Tensor]:
    """Weights under their names in the checkpoint; rows of the head that no code covers are 0."""
    shapes, keys, weights = config.shapes(), checkpoint_keys(config), {}
    for name, matrix in matrices.items():
        key = keys[name]
        values = torch.zeros(shapes[key])
        values[: matrix.shape[0]] = torch.from_numpy(matrix.dequantize())
        weights[key] = values
    return weights
