"""How large a model is at a precision, from its config alone."""

from __future__ import annotations

import math
import re

from lram_export.config import ModelConfig, expected_shapes
from lram_export.precision import FORMATS, GROUP, PRECISIONS, QUANTIZED
from lram_export.specification import state_specs

_MATRICES = re.compile("|".join(re.escape(k.checkpoint_key).replace(r"\{block\}", r"\d+") for k in QUANTIZED))


def weight_bytes(config: ModelConfig, precision: str) -> int:
    """Bytes of all weights at a precision of :data:`~lram_export.precision.PRECISIONS`: codes, scales and the rest."""
    stored = PRECISIONS[precision].weights
    total = 0
    for name, shape in expected_shapes(config).items():
        if stored in FORMATS and _MATRICES.fullmatch(name):
            rows, columns = shape
            description = FORMATS[stored]
            groups = 0 if not description.largest else math.ceil(columns / GROUP) if description.grouped else 1
            total += rows * columns * description.bits // 8 + 4 * rows * groups
        else:
            total += 4 * math.prod(shape)
    return total


def state_bytes(config: ModelConfig) -> int:
    """Bytes of one row's recurrent state, float32."""
    return 4 * sum(tensor.size for tensor in state_specs(config, 1))


def moved_bytes(config: ModelConfig, precision: str) -> int:
    """What a step of one row reads and writes: every weight once, every state tensor once in and once out."""
    return weight_bytes(config, precision) + 2 * state_bytes(config)
