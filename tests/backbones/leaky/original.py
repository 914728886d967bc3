"""No training code describes it."""

from __future__ import annotations

from collections.abc import Iterable

from lram_export.backbones.protocol import Weights

from .config import LeakyConfig

KINDS = ()


def recognizes(names: Iterable[str]) -> bool:
    return "encoder.leak" in names


def canonical(weights: Weights, config: LeakyConfig) -> Weights:
    return weights
