"""The matrices that a precision applies to, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from lram_export.errors import UsageError
from lram_export.model.config import ModelConfig, image_features
from lram_export.spec.tasks import TaskSpec


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
