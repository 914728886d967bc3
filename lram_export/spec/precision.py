"""Precisions: which matrices are stored in which format, and what rounds the activations. Free of torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lram_export.spec.parity import FLOAT32

GROUP, WIDE_GROUP = 64, 128
"""Inputs that share a scale in `int4`, and in `int8g`."""


@dataclass(frozen=True)
class WeightFormat:
    """How one matrix is stored.

    ``bits`` per weight; codes are integers from -``largest`` to ``largest`` (0: they are floating-point
    numbers and need no scale); a scale is for ``group`` inputs of an output channel (0: for the whole channel).
    """

    bits: int
    largest: int = 0
    group: int = 0

    def inputs_per_scale(self, columns: int) -> int:
        """Inputs that share a scale, in a matrix with so many."""
        return self.group or columns

    def groups(self, columns: int) -> int:
        """Scales of an output channel with so many inputs."""
        if not self.largest:
            return 0
        return -(-columns // self.group) if self.group else 1


FORMATS = {
    "fp16": WeightFormat(16),
    "bf16": WeightFormat(16),
    "int8": WeightFormat(8, largest=127),
    "int8g": WeightFormat(8, largest=127, group=WIDE_GROUP),
    "int4": WeightFormat(4, largest=7, group=GROUP),
}


@dataclass(frozen=True)
class Precision:
    """A named recipe: the format of the large matrices, and whether their inputs have static 8-bit ranges."""

    weights: str
    quantized_activations: bool = False


PRECISIONS = {
    "fp32": Precision("fp32"),
    "fp16": Precision("fp16"),
    "bf16": Precision("bf16"),
    "int8": Precision("int8"),
    "int8g": Precision("int8g"),
    "int4": Precision("int4"),
    "w8a8": Precision("int8", quantized_activations=True),
}
"""What a user can ask for by name, besides `auto`."""
AUTO, MIXED = "auto", "mixed"
"""What a user asks for to have a format chosen for every matrix; and what the bundle's precision is then called."""


def calibrated(precision: str) -> bool:
    """Whether recordings can make a precision of :data:`PRECISIONS` better: its codes are integers."""
    weights = PRECISIONS[precision].weights
    return weights in FORMATS and FORMATS[weights].largest > 0


HALF_FORMATS = ("fp16", "bf16")
ACTIVATION_FORMATS = (FLOAT32, "int8", *HALF_FORMATS)
"""In which a target can keep activations."""


def activation_format(target: str, precision: str, formats: Iterable[str]) -> str:
    """The format that a target keeps activations in, or rounds them to, where matrices are in some ``formats``.

    It decides how close to the oracle the target has to be. Static 8-bit ranges are followed by the targets whose
    kernels multiply bytes; TensorRT multiplies 16-bit weights with 16-bit inputs.
    """
    if target == "tensorrt":
        there = set(formats)
        return next((half for half in HALF_FORMATS if half in there), FLOAT32)
    static = precision in PRECISIONS and PRECISIONS[precision].quantized_activations
    return "int8" if static and target in ("native", "onnxruntime") else FLOAT32
