"""GPTQ: codes that keep a matrix's outputs, not its weights (Frantar et al., arXiv 2210.17323, algorithm 1).

Inputs are taken one after the other; the error of rounding one is passed on to those still to come, weighted
by the inverse of the second moment H of the inputs. Before that, the matrix is fitted to inputs that already
carry the rounding errors of earlier matrices: the idea of asymmetric calibration (Li et al., arXiv 2504.02692),
here as a plain least-squares step. Two refinements of the authors' own code are used: inputs
are taken by falling diagonal of H (`act-order`), with the scales of all groups fixed before (`static groups`),
so that codes stay in their places.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lram_export.quantization.calibration import InputStatistics
from lram_export.spec.codes import QuantizedMatrix
from lram_export.spec.precision import FORMATS

DAMPING = 0.01
"""Added to the diagonal of H, in units of its mean."""
BLOCK = 128
"""Inputs whose corrections are applied to the rest at once: same result, fewer passes over memory."""
SHRINKS = np.linspace(1.0, 0.4, 25)
"""Scales that are tried, in units of the one that holds the largest magnitude."""


def gptq(
    name: str,
    values: NDArray[np.float32],
    statistics: InputStatistics,
    weight_format: str,
    damping: float = DAMPING,
) -> QuantizedMatrix:
    """Codes for a matrix (out, in) with inputs of the given statistics, in an integer format."""
    largest = FORMATS[weight_format].largest
    group = FORMATS[weight_format].inputs_per_scale(values.shape[1])
    H = _damped(statistics, damping)
    weights = torch.from_numpy(values).double()
    scales = _scales(weights, H.diagonal(), group, largest)
    order = torch.argsort(H.diagonal(), descending=True)
    # upper Cholesky factor of the inverse: row i has what is left of H after inputs 0..i are fixed
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H[order][:, order]))
    factor = torch.linalg.cholesky(inverse, upper=True)
    per_input = scales.repeat_interleave(group, dim=1)[:, order]
    codes = _round_in_order(weights[:, order].clone(), per_input, factor, largest)
    in_place = torch.empty_like(codes)
    in_place[:, order] = codes
    return QuantizedMatrix(name, weight_format, in_place.to(torch.int8).numpy(), scales.float().numpy())


def fit_to_inputs(
    values: NDArray[np.float32], statistics: InputStatistics, damping: float = DAMPING
) -> NDArray[np.float32]:
    """The matrix (out, in) whose products with the inputs x are nearest to W x0 (least squares, damped).

    With the sum S of (x0 - x) x^T it is W + W S H^-1: the part of the difference that x tells is made up for.
    """
    if statistics.shift is None:
        return values
    H = _damped(statistics, damping)
    mean = float(statistics.second_moment.double().diagonal().mean())
    if mean <= 0:
        return values
    weights = torch.from_numpy(values).double()
    correction = torch.linalg.solve(H, (weights @ (statistics.shift.double() / mean)).T).T
    fitted: NDArray[np.float32] = (weights + correction).float().numpy()
    return fitted


def _damped(statistics: InputStatistics, damping: float) -> Tensor:
    """H with a mean diagonal of 1, plus the damping."""
    H = statistics.second_moment.double()
    mean = float(H.diagonal().mean())
    H = H / mean if mean > 0 else torch.eye(len(H), dtype=torch.float64)
    H.diagonal().add_(damping)
    return H


def _round_in_order(weights: Tensor, scales: Tensor, factor: Tensor, largest: int) -> Tensor:
    codes = torch.empty_like(weights)
    for start in range(0, weights.shape[1], BLOCK):
        end = min(start + BLOCK, weights.shape[1])
        errors = torch.empty_like(weights[:, start:end])
        for i in range(start, end):
            scale = scales[:, i]
            codes[:, i] = torch.clamp(torch.round(weights[:, i] / scale), -largest, largest)
            errors[:, i - start] = (weights[:, i] - codes[:, i] * scale) / factor[i, i]
            weights[:, i:end] -= errors[:, i - start, None] * factor[None, i, i:end]
        weights[:, end:] -= errors @ factor[start:end, end:]
    return codes


def _scales(weights: Tensor, importance: Tensor, group: int, largest: int) -> Tensor:
    """Per output and group, the scale with the least squared rounding error weighted by the inputs' importance."""
    groups = [slice(g, min(g + group, weights.shape[1])) for g in range(0, weights.shape[1], group)]
    columns = []
    for inputs in groups:
        part, weight = weights[:, inputs], importance[inputs]
        full = part.abs().amax(dim=1, keepdim=True) / largest
        full = torch.where(full > 0, full, 1.0)
        best, best_error = full, torch.full_like(full, torch.inf)
        for shrink in SHRINKS:
            scale = full * float(shrink)
            rounded = torch.clamp(torch.round(part / scale), -largest, largest) * scale
            error = ((rounded - part) ** 2 * weight).sum(dim=1, keepdim=True)
            best = torch.where(error < best_error, scale, best)
            best_error = torch.minimum(error, best_error)
        columns.append(best)
    return torch.cat(columns, dim=1)
