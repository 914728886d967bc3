"""Precisions: which matrices are stored in which format, and what rounds the activations. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from lram_export.config import ModelConfig, image_features
from lram_export.errors import UsageError
from lram_export.parity import FLOAT32
from lram_export.tasks import TaskSpec

GROUP = 64
"""Inputs that share a scale in `int4`."""


@dataclass(frozen=True)
class WeightFormat:
    """How one matrix is stored.

    ``bits`` per weight; codes are integers from -``largest`` to ``largest`` (0: they are floating-point
    numbers and need no scale); ``grouped`` formats have a scale for every :data:`GROUP` inputs of an output
    channel, the others one for the whole output channel.
    """

    bits: int
    largest: int = 0
    grouped: bool = False


FORMATS = {
    "fp16": WeightFormat(16),
    "bf16": WeightFormat(16),
    "int8": WeightFormat(8, largest=127),
    "int4": WeightFormat(4, largest=7, grouped=True),
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


@dataclass(frozen=True)
class MatrixKind:
    """A kind of large matrix: its name in the step graph, its weight in the checkpoint, what it is."""

    name: str
    checkpoint_key: str
    meaning: str


QUANTIZED = (
    MatrixKind(
        "blocks.{block}.proj_up",
        "encoder.layers.blocks.{block}.xlstm.proj_up.weight",
        "mLSTM up-projection: cell input and output gate in one matrix",
    ),
    MatrixKind(
        "blocks.{block}.proj_down",
        "encoder.layers.blocks.{block}.xlstm.proj_down.weight",
        "mLSTM down-projection",
    ),
    MatrixKind(
        "blocks.{block}.ffn_up",
        "encoder.layers.blocks.{block}.ffn.proj_up.weight",
        "feed-forward after an sLSTM block: gate and value in one matrix",
    ),
    MatrixKind(
        "blocks.{block}.ffn_down",
        "encoder.layers.blocks.{block}.ffn.proj_down.weight",
        "feed-forward after an sLSTM block, back to the hidden size",
    ),
    MatrixKind(
        "embed_observation.cnn.linear.0",
        "embed_image.linear.0.weight",
        "last layer of the image encoder",
    ),
    MatrixKind("head", "action_net.0.weight", "action head, only the rows the task reads"),
)
"""The matrices a precision applies to. Everything else stays float32: it is under 3% of the weights, and
gates, norms and recurrent kernels pass their error on to every later step."""


def matrix_kind(name: str) -> MatrixKind | None:
    """The kind of a matrix of the step graph, or None if it is never quantized."""
    return next((k for k in QUANTIZED if re.fullmatch(_pattern(k.name), name)), None)


def checkpoint_key(name: str) -> str:
    """Name of a matrix's weight in the checkpoint: ``blocks.3.proj_up`` -> ``encoder.layers.blocks.3.xlstm...``."""
    kind = matrix_kind(name)
    if kind is None:
        raise ValueError(f"{name}: not a matrix that is quantized")
    match = re.fullmatch(_pattern(kind.name), name)
    assert match is not None
    return kind.checkpoint_key.format(**match.groupdict())


def matrix_shapes(config: ModelConfig, task: TaskSpec) -> dict[str, tuple[int, int]]:
    """Name and shape (out, in) of every matrix of the step graph that a precision applies to."""
    hidden, inner, ffn = config.hidden_size, config.inner_size, config.ffn_size
    shapes: dict[str, tuple[int, int]] = {}
    for block in range(config.num_blocks):
        if block in config.slstm_at:
            shapes[f"blocks.{block}.ffn_up"] = (2 * ffn, hidden)
            shapes[f"blocks.{block}.ffn_down"] = (hidden, ffn)
        else:
            shapes[f"blocks.{block}.proj_up"] = (2 * inner, hidden)
            shapes[f"blocks.{block}.proj_down"] = (hidden, inner)
    if task.observation == "image" and config.image_shape is not None:
        shapes["embed_observation.cnn.linear.0"] = (hidden, image_features(config.image_shape))
    rows = config.discrete_actions if task.action == "discrete" else task.action_dim * config.num_actions
    return {**shapes, "head": (rows, hidden)}


def _pattern(name: str) -> str:
    return re.escape(name).replace(r"\{block\}", r"(?P<block>\d+)")


def select_matrices(names: Iterable[str], keep_fp32: Sequence[str] = ()) -> tuple[str, ...]:
    """The matrices to quantize, less those that a pattern (``blocks.0.*``, ``head``) keeps in float32.

    Raises:
        UsageError: a pattern fits no matrix; the message lists them.
    """
    known = [n for n in names if matrix_kind(n) is not None]
    for pattern in keep_fp32:
        if not any(fnmatchcase(n, pattern) for n in known):
            raise UsageError(f"--keep-fp32: '{pattern}' fits no matrix; this model has: {', '.join(known)}")
    return tuple(n for n in known if not any(fnmatchcase(n, p) for p in keep_fp32))
