"""Calibrated quantization, block by block: every matrix is fitted to the inputs it will really get.

Recorded episodes go through two models side by side, stage by stage: the one in float32, and the one whose
matrices are quantized so far. What a matrix of the second is given carries the rounding errors of all before
it; the part of them that its input tells is made up for before the matrix itself is rounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lram_export.episodes.batches import batch_episodes
from lram_export.errors import LramError
from lram_export.lowering import LoweredPolicy, matrix_values
from lram_export.model.graph import Graph
from lram_export.progress import Advance
from lram_export.quantization.activation_ranges import activation_range, well_rounded
from lram_export.quantization.calibration import Calibration, InputStatistics
from lram_export.quantization.gptq import fit_to_inputs, gptq
from lram_export.quantization.nearest import round_to_nearest
from lram_export.quantization.stagewise import run_stage, stages
from lram_export.spec.codes import ActivationRange, QuantizedMatrix
from lram_export.spec.parity import TOLERANCES
from lram_export.spec.precision import FORMATS


def quantize_blockwise(
    policy: LoweredPolicy,
    formats: Mapping[str, str],
    calibration: Calibration,
    *,
    activations: bool = False,
    advance: Advance = lambda amount: None,
) -> dict[str, QuantizedMatrix]:
    """Codes of matrices for the inputs they get in recorded episodes.

    Args:
        policy: the policy in float32.
        formats: a weight format for every matrix to quantize, by its name in the step graph.
        calibration: the episodes.
        activations: also give static 8-bit ranges to the inputs of matrices (`w8a8`): of those where it keeps
            within the tolerance (see :mod:`~lram_export.quantization.activation_ranges`).
        advance: told of every matrix.

    Raises:
        LramError: with ``activations``, no matrix can have its inputs rounded within the tolerance.
    """
    graph = policy.fresh_graph()
    batches = batch_episodes(calibration.episodes)
    unquantized: Sequence[Tensor | None] = [None] * len(batches)
    quantized = unquantized
    driving = policy.state_matrices()
    matrices: dict[str, QuantizedMatrix] = {}
    ranges: dict[str, tuple[ActivationRange, float]] = {}
    every = stages(graph, formats)
    last = max((i for i, stage in enumerate(every) if stage.matrices), default=-1)
    for number, stage in enumerate(every[: last + 1]):
        unquantized, wanted = run_stage(stage, policy.graph, batches, unquantized, stage.matrices)
        for name in stage.matrices:
            _, seen = run_stage(stage, graph, batches, quantized, [name])
            statistics = InputStatistics.of(seen[name], wanted[name])
            matrix = calibrated_matrix(name, matrix_values(policy, name), statistics, formats[name])
            if activations and name not in driving:
                ranges[name] = activation_range(seen[name])
            _replace(graph, name, matrix.dequantize())
            matrices[name] = matrix
            advance(1)
        if number < last:
            quantized, _ = run_stage(stage, graph, batches, quantized)
    rounded = well_rounded(graph, ranges, calibration) if ranges else []
    if activations and not rounded:
        raise LramError(
            "--precision w8a8: 8-bit inputs take every matrix of this policy beyond the tolerance of "
            f"{100 * TOLERANCES['rounded'].logit:g}% in some recorded step; use int8, which keeps inputs in float32"
        )
    for name in rounded:
        matrices[name] = dataclasses.replace(matrices[name], activation=ranges[name][0])
    return matrices


def calibrated_matrix(
    name: str, values: NDArray[np.float32], statistics: InputStatistics, weight_format: str
) -> QuantizedMatrix:
    """Fit a matrix to its inputs, then round it: by GPTQ to integers, else to the nearest."""
    fitted = fit_to_inputs(values, statistics)
    if FORMATS[weight_format].largest:
        return gptq(name, fitted, statistics, weight_format)
    return round_to_nearest(name, fitted, weight_format)


def _replace(graph: Graph, name: str, values: NDArray[np.float32]) -> None:
    layer = graph.layers()[name]
    layer.weight = torch.nn.Parameter(torch.tensor(values), requires_grad=False)
