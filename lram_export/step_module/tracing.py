"""A step graph as PyTorch traces it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import Tensor

from lram_export.model.graph import Graph


def trace(graph: Graph) -> Any:
    """The program of a step, with the batch size of the specification; raises whatever torch raises."""
    with quietly(), without_values():
        return torch.export.export(graph, example_arguments(graph), strict=False)


@contextmanager
def without_values() -> Iterator[None]:
    """Nothing of torch's own looks at values, which are not there while it traces; nor are there gradients."""
    distribution = torch.distributions.Distribution
    checked = distribution._validate_args
    distribution.set_default_validate_args(False)
    try:
        with torch.no_grad():
            yield
    finally:
        distribution.set_default_validate_args(checked)


def example_arguments(graph: Graph) -> tuple[Tensor, ...]:
    """Tensors of the shapes and types of a step."""
    spec = graph.spec
    return tuple(torch.zeros(t.shape, dtype=getattr(torch, t.dtype)) for t in (*spec.inputs, *spec.states))


@contextmanager
def quietly() -> Iterator[None]:
    """Keep to itself what torch says of its own insides while it traces."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.fx", "torch.fx.experimental.symbolic_shapes")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
