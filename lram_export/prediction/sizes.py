"""How large a model is at a precision, from its config and its task alone."""

from __future__ import annotations

import math

from lram_export.model.config import ModelConfig
from lram_export.spec.precision import FORMATS, PRECISIONS
from lram_export.spec.tasks import TaskSpec


def weight_bytes(config: ModelConfig, precision: str, task: TaskSpec | None = None) -> int:
    """Bytes of the weights that a step reads (:meth:`ModelConfig.used_weights`) at a precision of
    :data:`~lram_export.spec.precision.PRECISIONS`: codes, scales and the rest."""
    stored = PRECISIONS[precision].weights
    total = 0
    for weight in config.used_weights(task):
        if stored in FORMATS and weight.matrix is not None:
            rows, columns = weight.shape
            description = FORMATS[stored]
            total += rows * columns * description.bits // 8 + 4 * rows * description.groups(columns)
        else:
            total += 4 * math.prod(weight.shape)
    return total


def state_bytes(config: ModelConfig) -> int:
    """Bytes of one row's recurrent state, float32."""
    return 4 * sum(tensor.size for tensor in config.backbone.states(1, len(config.tokens)))


def moved_bytes(config: ModelConfig, precision: str, task: TaskSpec | None = None) -> int:
    """What a step of one row reads and writes: every weight once, every state tensor once in and once out."""
    return weight_bytes(config, precision, task) + 2 * state_bytes(config)


COMPUTES = 16
"""Multiplications per weight from which on they limit a step: memory delivers a weight in the time of a few."""


def products(config: ModelConfig) -> int:
    """Multiplications of a step of one row, from the backbone; 0 where it counts none, as each weight serves only a
    step's few tokens."""
    return config.backbone.products() if hasattr(config.backbone, "products") else 0


def computes(config: ModelConfig) -> bool:
    """Whether its multiplications limit a step: every weight serves so many tokens that memory delivers it sooner (a
    transformer over its window)."""
    return products(config) > COMPUTES * config.parameters


def work(config: ModelConfig, precision: str, task: TaskSpec | None = None) -> int:
    """What the time of a step grows with: the bytes that it moves, or its multiplications where they limit it."""
    return products(config) if computes(config) else moved_bytes(config, precision, task)


def family(config: ModelConfig) -> str:
    """Models that take their time alike: a backbone, in one of its contexts where it has several."""
    return config.backbone.kind if config.context is None else f"{config.backbone.kind} {config.context}"
