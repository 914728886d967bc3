"""Static 8-bit ranges of matrices' inputs (`w8a8`): what they are, and where they can be had within the tolerance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lram_export.episodes.batches import batch_episodes
from lram_export.model.graph import Graph
from lram_export.quantization.calibration import Calibration
from lram_export.quantization.episode_runs import outputs
from lram_export.spec.codes import ActivationRange
from lram_export.spec.cost import computed_values
from lram_export.spec.parity import TOLERANCES, relative_error

RANGE_SHRINKS = np.linspace(1.0, 0.3, 29)
"""Ranges that are tried, in units of the one that holds all values seen."""
CODES = 255
MARGIN = 0.8
"""Part of the tolerance that rounding inputs may take in the recordings it is judged by."""
JUDGED_STEPS = 2048


def activation_range(x: Tensor) -> tuple[ActivationRange, float]:
    """The static 8-bit range of values with the least squared rounding error, and that error relative to them.

    0 is always exact.
    """
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    if low == high:
        return ActivationRange(1.0, 0), 0.0
    best, best_error = ActivationRange(1.0, 0), math.inf
    for shrink in RANGE_SHRINKS:
        scale = float(np.float32((high - low) * shrink / CODES))
        zero_point = round(-low * shrink / scale)
        found = ActivationRange(scale, zero_point)
        error = float((round_to_range(x, found) - x).square().sum())
        if error < best_error:
            best, best_error = found, error
    return best, math.sqrt(best_error / float(x.square().sum()))


def round_to_range(x: Tensor, found: ActivationRange) -> Tensor:
    """What 8-bit codes of a range leave of values."""
    codes = torch.clamp(torch.round(x / found.scale) + found.zero_point, 0, CODES)
    return (codes - found.zero_point) * found.scale


def well_rounded(
    graph: Graph, ranges: Mapping[str, tuple[ActivationRange, float]], calibration: Calibration
) -> list[str]:
    """The matrices whose inputs can be rounded, all at once, with every step's logits well within the tolerance.

    They are tried one after the other, from the smallest rounding error on, with those already chosen.

    Args:
        graph: computes with the quantized weights.
        ranges: range and relative rounding error of every candidate's input.
        calibration: episodes to judge by.
    """
    batches = batch_episodes(calibration.at_most(JUDGED_STEPS).episodes)
    exact = computed_values(graph.spec, outputs(graph, batches))
    bound = MARGIN * TOLERANCES["rounded"].logit
    chosen: list[str] = []
    for name in sorted(ranges, key=lambda n: ranges[n][1]):
        with _rounded_inputs(graph, {n: ranges[n][0] for n in [*chosen, name]}):
            rounded = computed_values(graph.spec, outputs(graph, batches))
        if max(relative_error(e, r) for e, r in zip(exact, rounded, strict=True)) <= bound:
            chosen.append(name)
    return chosen


@contextmanager
def _rounded_inputs(graph: Graph, ranges: Mapping[str, ActivationRange]) -> Iterator[None]:
    def rounding(found: ActivationRange) -> Any:
        return lambda module, arguments: (round_to_range(arguments[0], found),)

    layers = graph.layers()
    handles: Sequence[Any] = [layers[name].register_forward_pre_hook(rounding(found)) for name, found in ranges.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
