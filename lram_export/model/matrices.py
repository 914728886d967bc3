"""The matrices that a precision applies to, by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from lram_export.errors import UsageError
from lram_export.model.config import ModelConfig
from lram_export.spec.tasks import TaskSpec


def matrix_shapes(config: ModelConfig, task: TaskSpec) -> dict[str, tuple[int, int]]:
    """Name and shape (out, in) of every matrix of the step graph that a precision applies to.

    Everything else stays float32: gates, norms and recurrent kernels pass their error on to every later step, and are
    a few percent of the weights.
    """
    return {
        weight.matrix: (weight.shape[0], weight.shape[1])
        for weight in config.used_weights(task)
        if weight.matrix is not None
    }


def checkpoint_keys(config: ModelConfig) -> dict[str, str]:
    """Name of a matrix -> name of its weight in the checkpoint: ``blocks.3.proj_up`` -> ``encoder.layers...``."""
    return {weight.matrix: weight.name for weight in config.weights() if weight.matrix is not None}


def state_matrices(config: ModelConfig) -> frozenset[str]:
    """The matrices whose outputs drive the recurrent state and its exponentials."""
    return frozenset(weight.matrix for weight in config.weights() if weight.matrix and weight.drives_state)


def select_matrices(names: Iterable[str], keep_fp32: Sequence[str] = ()) -> tuple[str, ...]:
    """The matrices to quantize, less those that a pattern (``blocks.0.*``, ``head``) keeps in float32.

    Raises:
        UsageError: a pattern fits no matrix; the message lists them.
    """
    known = tuple(names)
    for pattern in keep_fp32:
        if not any(fnmatchcase(n, pattern) for n in known):
            raise UsageError(f"--keep-fp32: '{pattern}' fits no matrix; this model has: {', '.join(known)}")
    return tuple(n for n in known if not any(fnmatchcase(n, p) for p in keep_fp32))
